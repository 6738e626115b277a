"Do all lessons and tests hold on other processors, with more threads, with other seeds? About half an hour on two cores: `make test-anywhere`"
import os, subprocess, sys
from pathlib import Path
from time import perf_counter

root,exe = Path(__file__).resolve().parent.parent,Path(sys.executable)
# What PyTorch may use of the processor ('': all that it has), threads, and how far seeds are moved
runs = [('default',1,0), ('avx2',2,0), ('',2,0), ('',1,1), ('default',1,2), ('avx2',1,3)]

def env_of(cap, threads, seed):
    "The environment of such a run"
    res = dict(os.environ, OMP_NUM_THREADS=str(threads), OTHER_SEED=str(seed))
    if seed: res['PYTHONPATH'] = str(root/'tests'/'seeds')
    return res|({'ATEN_CPU_CAPABILITY':cap} if cap else {})

def commands(lessons=None):
    "Lessons, then tests; or the named lessons alone"
    nbs = ['--file-re', '|'.join(f'{o}_.*' for o in lessons)] if lessons else []
    yield [exe.with_name('nbdev-test'), '--n-workers', '2', '--do-print', *nbs]
    if not lessons: yield [exe, '-m', 'pytest', 'tests', '-q', '-m', 'not real', '-n', '2']

def main(lessons):
    bad = 0
    for run in runs:
        t0,ok = perf_counter(),all([not subprocess.run(o, cwd=root, env=env_of(*run)).returncode for o in commands(lessons)])
        bad += not ok
        cap,threads,seed = run
        print(f"{'passed' if ok else 'FAILED'}: ATEN_CPU_CAPABILITY={cap or 'native'}, {threads} threads, seeds moved by {1000*seed}, {perf_counter()-t0:.0f} s", flush=True)
    return int(bad>0)

if __name__=='__main__': sys.exit(main(sys.argv[1:]))
