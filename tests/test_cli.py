"The command line: every command, in this process and in a shell of its own"
import json, os, socket, subprocess, sys, time
from pathlib import Path

import pytest
from fastcore.test import expect_fail
from torch._utils import ExceptionWrapper

from fastaudio_lite import cli as cli_mod
from fastaudio_lite.audio import AudioError, load_audio
from fastaudio_lite.cli import commands, main
from fastaudio_lite.datasets import DataSet, digit_files, digit_label, registry
from fastaudio_lite.export import from_pretrained

@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch, request):
    "A working directory of one's own; but for real tests no data but the starter set, and no network"
    if not request.node.get_closest_marker('real'): monkeypatch.setenv('FASTAUDIO_LITE_DATA_PATH', str(tmp_path/'data'))
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'yes')
    monkeypatch.delenv('FASTAUDIO_LITE_DEBUG', raising=False)
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')

@pytest.fixture
def cli(capsys):
    "Run a command that must succeed: its output"
    def _run(*args):
        capsys.readouterr()
        code = main(args)
        out,err = capsys.readouterr()
        assert (code,err)==(0,'')
        return out
    return _run

def shell(*args, **kwargs): return subprocess.run([sys.executable, '-c', 'from fastaudio_lite.cli import main; raise SystemExit(main())', *map(str, args)],
    **{**dict(text=True, capture_output=True), **kwargs})

def left(): return sorted(str(o) for o in Path().rglob('*') if o.is_file())
model_files = ['README.md', 'config.json', 'model.safetensors']

# Help
def _help_time():
    t0 = time.perf_counter()
    assert shell('--help').returncode==0
    return time.perf_counter()-t0

def test_help_is_fast(): assert min(_help_time() for _ in range(5)) < 1

@pytest.mark.parametrize('name', commands)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as e: main([name, '--help'])
    out = capsys.readouterr().out
    assert e.value.code==0 and f'Example: fastaudio-lite {name}' in ' '.join(out.split())
    assert commands[name].__doc__ in ' '.join(out.split())

def test_no_words():
    res = shell()
    assert res.returncode==0 and all(f'\n  {o} ' in res.stdout for o in commands)

@pytest.mark.parametrize('args', (['fly'], ['get', '--fast'], ['train'], ['train', 'a', '--epochs', 'ten'], ['demo', 'extra']))
def test_usage(args):
    res = shell(*args)
    assert (res.returncode,res.stdout)==(2,'') and res.stderr.startswith('usage: fastaudio-lite')
    assert sum('error:' in o for o in res.stderr.splitlines())==1

def test_version(): assert shell('--version').stdout.startswith('fastaudio_lite ')

def test_script():
    "The name that an installation puts beside Python"
    fn = Path(sys.executable).with_name('fastaudio-lite')
    if not fn.exists(): pytest.skip('not installed here')
    assert subprocess.run([fn, 'get', 'starter'], text=True, capture_output=True).stdout.startswith('starter: ')

# Errors, warnings, pipes
def test_debug():
    "The traceback, for those who ask for it"
    res = shell('get', 'nothing', env={**os.environ, 'FASTAUDIO_LITE_DEBUG':'1'})
    assert res.returncode==1 and 'Traceback' in res.stderr
    res = shell('get', 'nothing', env={**os.environ, 'FASTAUDIO_LITE_DEBUG':'0'})
    assert res.returncode==2 and len(res.stderr.splitlines())==1

def test_unexpected_error(monkeypatch, capsys):
    def _boom(*names): raise TypeError('no\nsuch thing')
    monkeypatch.setitem(commands, 'get', _boom)
    assert main(['get'])==2
    assert capsys.readouterr().err=='fastaudio-lite: TypeError: no such thing (FASTAUDIO_LITE_DEBUG=1 shows where)\n'

def test_worker_error():
    "What failed in a worker process comes with its traceback: still one line"
    Path('a.wav').write_text('no sound')
    try: load_audio('a.wav')
    except AudioError: wrapped = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(AudioError) as e: wrapped.reraise()
    assert 'Traceback' in str(e.value)
    msg = cli_mod._line(e.value)
    assert msg.startswith('cannot read a.wav') and 'Traceback' not in msg and '\n' not in msg

def test_broken_pipe():
    p = subprocess.Popen([sys.executable, '-c', 'import time; from fastaudio_lite.cli import main; time.sleep(.5); raise SystemExit(main(["get"]))'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    assert p.stderr.read()=='' and p.wait()==141

# get, doctor, benchmark
def test_get(cli):
    out = cli('get')
    assert all(k in out and ds.licence in out for k,ds in registry.items()) and out.count('at hand')==1
    assert cli('get', 'starter').startswith('starter: ')

def test_doctor(cli):
    Path('settings.ini').write_text('[fastaudio_lite]\nsr = 22050\n')
    out = cli('doctor')
    for o in ('torch', 'soundfile', 'settings.ini', 'FASTAUDIO_LITE_OFFLINE', 'sr = 22050', 'Data sets at hand: starter', 'All that is needed works'): assert o in out

def test_doctor_finds(monkeypatch, capsys):
    monkeypatch.setitem(cli_mod._packages, 'needed', ['torch', 'no_such_package'])
    assert main(['doctor'])==2
    out = capsys.readouterr().out
    assert 'MISSING no_such_package' in out and '1 thing to mend' in out

def test_benchmark(cli, monkeypatch):
    out = cli('benchmark')
    assert 'fsdd-official' in out and 'frontend' in out
    from fastaudio_lite import benchmark
    monkeypatch.setitem(benchmark.benchmarks, 'toy', lambda: dict(metric='accuracy', value=.5, split='half', seconds=1))
    assert cli('benchmark', 'toy').startswith('toy: accuracy 0.5, half (1 s)')
    assert main(['benchmark', 'no'])==2

# train and predict
def words(path, n=12, digits='16'):
    "A folder of digits of the starter set"
    for k in digits:
        (path/k).mkdir(parents=True)
        for o in digit_files('starter').filter(lambda o: digit_label(o)==k)[::5][:n]: (path/k/o.name).write_bytes(o.read_bytes())
    return path

def test_train_folder(cli):
    "From a folder to an answer; the card says what was measured"
    out = cli('train', words(Path('words')), '--epochs', 20, '--bs', 8)
    assert 'held-out clips' in out and 'baseline' in out and out.count('epoch ')==20
    assert sorted(os.listdir('models/words'))==model_files
    card = Path('models/words/README.md').read_text()
    assert all(o in card for o in ('accuracy', 'baseline', 'seed 42'))
    rows = [o.split('\t') for o in cli('predict', 'words', '--model', 'models/words', '--top', 2).splitlines()]
    assert len(rows)==24 and all(len(o)==5 and {o[1],o[3]}=={'1','6'} for o in rows)
    assert sum(Path(o[0]).parent.name==o[1] for o in rows) > 17

def test_train_twice(cli):
    "The same seed, the same model; another seed, another one"
    words(Path('words'), 6)
    runs = [cli('train', 'words', '--out', f'm{i}', '--epochs', 2, '--seed', s) for i,s in enumerate((1,1,2))]
    a,b,c = (Path(f'm{i}/model.safetensors').read_bytes() for i in range(3))
    assert a==b!=c
    assert runs[0].splitlines()[-3].partition('held-out')[0]==runs[1].splitlines()[-3].partition('held-out')[0]

def test_train_csv(cli):
    words(Path('words'), 6)
    files = sorted(Path('words').glob('*/*.wav'))
    rows = [f"{o},{'one' if o.parent.name=='1' else 'six'},{'yes' if i%3==0 else ''}" for i,o in enumerate(files)]
    Path('t.csv').write_text('\n'.join(['file,label,valid', *rows])+'\n')
    assert 'held out: 4, as the source says' in cli('train', 't.csv', '--epochs', 1, '--no-augment', '--dur', .3, '--sr', 16000)
    clf = from_pretrained('models/t')
    assert (clf.vocab,clf.sr,clf.dur)==(['one','six'],16000,.3)

def test_train_valid_layout(cli):
    words(Path('w')/'train', 5)
    words(Path('w')/'valid', 2)
    assert '10 clips of 2 classes' in cli('train', 'w', '--epochs', 1, '--workers', 1)

def test_train_many(cli, monkeypatch):
    "Sets too large for memory are read as they are needed"
    monkeypatch.setattr(cli_mod, '_suit', lambda infos, sr, dur: (8000, .5, False))
    cli('train', words(Path('words'), 5), '--epochs', 1)

def test_replace_model(cli):
    words(Path('words'), 4)
    for _ in range(2): cli('train', 'words', '--epochs', 1)
    assert sorted(os.listdir('models'))==['words']

def test_predict_json(cli):
    cli('train', words(Path('words'), 4), '--epochs', 1, '--dur', .2, '--out', 'm')
    files = sorted(Path('words').glob('*/*.wav'))
    res = json.loads(cli('predict', files[0], '--model', 'm', files[1], '--json'))
    assert [o['file'] for o in res['predictions']]==list(map(str, files[:2])) and res['errors']==[]
    for o in res['predictions']: assert o['prob']==max(o['probs'].values())==o['probs'][o['label']] and len(o['windows'])>1
    rows = [o.split('\t') for o in cli('predict', files[0], '--model', 'm', '--windows').splitlines()]
    assert len(rows)==len(res['predictions'][0]['windows']) and rows[1][:3]==[str(files[0]), '0.10', '0.30']

def test_draw():
    held = cli_mod._draw(['a']*20 + ['b']*2 + ['c'], 20, 1)
    assert (sum(held[:20]),sum(held[20:22]),held[22])==(4,1,False)
    with expect_fail(ValueError, 'no clips to hold out'): cli_mod._split(['a','b'], cli_mod._draw(['a','b'], 20, 1))

# demo
def test_demo(cli):
    "On the starter set: picture, model and figures"
    out = cli('demo', '--epochs', 1)
    assert out.startswith('Starter set: 900') and all(o in out for o in ('baseline', 'never heard', 'make lab'))
    assert left()==['demo.png', *(f'models/digits/{o}' for o in model_files)]
    assert 20_000 < os.stat('demo.png').st_size < 150_000 and Path('demo.png').read_bytes()[:4]==b'\x89PNG'
    assert len(from_pretrained('models/digits').vocab)==10

def test_dead_network(monkeypatch, capsys):
    "Nobody there, or somebody who never answers: a line, and on with the starter set"
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'no')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        url = f'http://127.0.0.1:{s.getsockname()[1]}/x.zip'
        t0 = time.perf_counter()
        assert not cli_mod._answers(url, .3) and time.perf_counter()-t0 < 2
    monkeypatch.setitem(registry, 'fsdd', DataSet('fsdd', '', url, 1, 'x', '*.wav', 1))
    cli_mod._fetch_digits()
    assert capsys.readouterr().err.count('\n')==1

@pytest.mark.real
def test_demo_real(cli):
    "Real digits, few epochs: better than nine in ten"
    assert cli('demo', '--epochs', 3).startswith('FSDD: 3000')
    d = json.loads(Path('models/digits/config.json').read_text())['figures']
    assert d['n']==300 and d['accuracy']>.9 and d['accuracy']>d['baseline_accuracy']
