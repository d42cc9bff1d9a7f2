"""A plugin with one small method for each fault, for `test_matrix.py`."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from prunebench import Method, hookimpl

MARKER = "fault-matrix-sleeper"
SLEEPER = [sys.executable, "-c", f"import time; time.sleep(600)  # {MARKER}"]


def faulty(name, *, seed=False):
    """Turn a function of (model, context) into a method."""

    def wrap(function):
        body = {
            "name": name,
            "prune": lambda self, model, context: function(model, context),
            "__doc__": function.__doc__,
        }
        return type(name.title().replace("-", ""), (Method,), body)

    return wrap


@faulty("sound")
def sound(model, context):
    """Prune a little and do no harm."""
    model.model.layers[0].mlp.up_proj.weight[0] = 0.0


@faulty("raises")
def raises(model, context):
    raise ValueError("this method cannot do it")


@faulty("hangs")
def hangs(model, context):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    time.sleep(600)


@faulty("exits")
def exits(model, context):
    sys.exit(3)


@faulty("os-exit")
def os_exit(model, context):
    os._exit(0)


@faulty("segfaults")
def segfaults(model, context):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


@faulty("allocates")
def allocates(model, context):
    hoard = []
    while True:
        hoard.append(bytearray(b"x" * 50_000_000))
        time.sleep(0.005)


@faulty("fills-disk")
def fills_disk(model, context):
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY)
    )  # stands in for a full disk
    with Path(os.environ["TMPDIR"], "full").open("wb") as file:
        while True:
            file.write(b"x" * 1_000_000)


@faulty("daemon")
def daemon(model, context):
    """Leave a process in a session of its own, with an empty environment and a parent that ended."""
    subprocess.run(
        [sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEPER!r}, start_new_session=True, env={{}})"],
        env={}, check=True,
    )  # fmt: skip


@faulty("daemon-then-exit")
def daemon_then_exit(model, context):
    subprocess.Popen(SLEEPER, start_new_session=True)
    subprocess.Popen(SLEEPER)
    os._exit(7)


@faulty("kills-launcher")
def kills_launcher(model, context):
    subprocess.Popen(SLEEPER, start_new_session=True)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


@faulty("stops-launcher")
def stops_launcher(model, context):
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(600)


@faulty("prints")
def prints(model, context):
    os.write(1, bytes(range(256)) * 100_000)  # 25 MB that are no text
    sys.stderr.write("<script>alert(1)</script>\n")
    sys.stdout.close()


@faulty("notes")
def notes(model, context):
    context.notes["model"] = model
    context.notes["nan"] = float("nan")


@faulty("nan")
def nan(model, context):
    model.model.norm.weight[3] = float("nan")


@faulty("hook")
def hook(model, context):
    model.model.layers[1].register_forward_hook(lambda module, inputs, output: output * 0)


@faulty("global-hook")
def global_hook(model, context):
    torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)


@faulty("dtype")
def dtype(model, context):
    torch.set_default_dtype(torch.float16)


@faulty("threads")
def threads(model, context):
    torch.set_num_threads(2)
    threading.Thread(target=time.sleep, args=(600,), name="busy", daemon=True).start()


@faulty("seeds")
def seeds(model, context):
    torch.manual_seed(12345)


@faulty("gradients")
def gradients(model, context):
    torch.set_grad_enabled(True)
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad = True


@faulty("tf32")
def tf32(model, context):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True)


@faulty("process-state")
def process_state(model, context):
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ.pop("PRUNEBENCH_CACHE", None)
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 600)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@hookimpl
def prunebench_register_method():
    return [
        value
        for value in globals().values()
        if isinstance(value, type) and issubclass(value, Method) and value is not Method
    ]
