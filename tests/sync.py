"Do notebooks, exported modules, README and style agree? Looks at a copy, so it changes nothing: `make sync` does"
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
parts = 'pyproject.toml settings.ini README.md nbs fastaudio_lite results'.split()

def _copy(src, dst):
    if not src.is_dir(): return shutil.copy2(src, dst)
    shutil.copytree(src, dst, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.egg-info'))

def _run(cmd, cwd):
    "Run a tool of this very environment in `cwd`, with no settings from the user's home"
    exe,*args = cmd.split()
    env = os.environ|{'XDG_CONFIG_HOME':str(cwd), 'PYTHONPATH':''}
    exe = [sys.executable] if exe=='python' else [Path(sys.executable).with_name(exe)]
    res = subprocess.run(exe+args, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if res.returncode: sys.exit(f'{cmd} failed:\n{res.stdout}')

def _files(path): return {p.relative_to(path): p.read_bytes() for d in parts for p in [path/d, *(path/d).rglob('*')]
    if p.is_file() and p.suffix!='.pyc' and p.name!='_modidx.py'}

def diffs():
    "Files that cleaning, exporting and drawing the README would change"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for p in parts: _copy(root/p, tmp/p)
        old = _files(tmp)
        for cmd in ('nbdev-clean', 'nbdev-export', 'python results/readme.py'): _run(cmd, tmp)
        new = _files(tmp)
    return sorted(str(p) for p in old.keys()|new.keys() if old.get(p)!=new.get(p))

if __name__=='__main__':
    if changed := diffs(): sys.exit(f'Out of step: {", ".join(changed)}. Run make sync, look at the difference, and commit it.')
    _run('chkstyle', root)
    print('In step: notebooks, modules, README, style')
