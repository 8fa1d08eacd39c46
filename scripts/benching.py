"""What the bench scripts share: a Python of their own, and what a command takes."""
import os, pathlib, re, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def enter(name, packages):
    """Goes on in .bench/NAME, a virtual environment with `packages`, which it makes first."""
    venv = ROOT / ".bench" / name
    python = venv / "bin/python"
    if not (venv / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "--quiet", "install", *packages], check=True)
        (venv / "ready").touch()
    if pathlib.Path(sys.prefix).resolve() != venv.resolve():
        os.execv(python, [str(python), *sys.argv])


# Runs a command; says on stderr how much memory it took at most.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak_kib=%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def measured(command, **environment):
    """(seconds, peak MiB, stdout, stderr) of a command; ends the bench with its last words when it fails."""
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", PEAK, *map(str, command)], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if child.returncode:
        sys.exit(child.stderr[-3000:])
    return seconds, int(re.search(r"peak_kib=(\d+)", child.stderr)[1]) / 1024, child.stdout, child.stderr
