"""`python -m prunebench`."""

from prunebench.isolation.interpreter import leave_working_folder

# Before anything else is imported: the working folder is still first on the path.
leave_working_folder()

from prunebench.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
