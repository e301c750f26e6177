"""python -m tests.fuzz.libfuzzer TARGET …: a target under libFuzzer, by its arguments."""

import sys

import atheris

with atheris.instrument_imports(include=["app", "model", "PIL", "python_multipart"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    _, target, *arguments = sys.argv
    # It starts itself anew to merge, by a shell.
    program = f"{sys.executable} -m tests.fuzz.libfuzzer {target}"
    atheris.Setup([program, *arguments], TARGETS[target])
    atheris.Fuzz()
