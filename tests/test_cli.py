"The command line: every command, in this process and in a shell of its own"
import io, json, os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, soundfile as sf
from fastcore.test import expect_fail
from torch._utils import ExceptionWrapper

from fastaudio_lite import cli as cli_mod
from fastaudio_lite.asr.transcribe import step_dur
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

def test_swallowed_ctrl_c():
    "A Ctrl-C that some library catches and forgets still ends the training"
    from fastai.basics import Callback
    from fastai.test_utils import synth_learner
    class Deaf(Callback):
        def before_step(self):
            try: signal.raise_signal(signal.SIGINT)
            except: self.heard = self.iter
    learn,old = synth_learner(cbs=[cli_mod._progress(print), deaf := Deaf()]),signal.getsignal(signal.SIGINT)
    try:
        with expect_fail(KeyboardInterrupt): learn.fit(1)
    finally: signal.signal(signal.SIGINT, old)
    assert deaf.heard==0

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

def test_help_of_switches():
    "What is on unless it is switched off does not look like a switch that is on"
    for name in ('train','train-asr'): assert 'default: True' not in shell(name, '--help').stdout

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

def test_ctrl_c_as_another_error(monkeypatch, capsys):
    "A library that was interrupted may raise what it likes: it was Ctrl-C"
    def _odd(*names):
        try: signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt: raise ImportError('half imported')
    monkeypatch.setitem(commands, 'get', _odd)
    old = signal.getsignal(signal.SIGINT)
    assert main(['get'])==130 and signal.getsignal(signal.SIGINT) is old
    assert capsys.readouterr().err=="fastaudio-lite: stopped; nothing is left half-written\n"

def test_output_closed(monkeypatch):
    "A process without a standard output works, and says what went wrong by its code"
    for args,code in (['get','starter'],0),(['get','nothing'],2):
        monkeypatch.setattr(sys, 'stdout', None)
        assert main(args)==code

def test_answers_are_numbers(capsys):
    "NaN is no answer and no json; an error names its file"
    def _bad(fn): raise ValueError('no sound')
    for f in (lambda o: dict(probs={'a':float('nan')}), lambda o: dict(words=[dict(prob=float('inf'))]), _bad):
        assert 'x.wav' in cli_mod._try(f, 'x.wav')['error'] and 'x.wav' in capsys.readouterr().err
    assert 'error' not in cli_mod._try(lambda o: dict(probs={'a':.5}, n=1), 'x.wav')

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
    monkeypatch.setitem(cli_mod._asked_packages, 'needed', ['torch', 'no_such_package'])
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
def words(path, n=12, digits='16', skip=0):
    "A folder of digits of the starter set"
    for k in digits:
        (path/k).mkdir(parents=True)
        for o in digit_files('starter').filter(lambda o: digit_label(o)==k)[::5][skip:skip+n]: (path/k/o.name).write_bytes(o.read_bytes())
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

def test_train_resumes(capsys):
    "Killed, the same command goes on to the very model that it would have made"
    words(Path('words'), 8)
    args,ck = ['train', 'words', '--epochs', '20', '--dur', '.3'],Path('m/.a-training/checkpoint.pt')
    _killed([*args, '--out', 'm/a'], ck)
    assert main([*args, '--out', 'm/a', '--lr', '.1'])==2 and 'got lr 0.1, expected lr 0.005, with which' in capsys.readouterr().err
    assert main([*args, '--out', 'm/a'])==0 and 'going on from m/.a-training' in capsys.readouterr().out
    assert main([*args, '--out', 'm/b'])==0 and sorted(os.listdir('m'))==['a','b']
    a,b = (Path(f'm/{o}/model.safetensors').read_bytes() for o in 'ab')
    assert a==b

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
    words(Path('w')/'valid', 2, skip=5)
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

# The figures are of what was held out, and training knows nothing of it
def _tensors(folder):
    from safetensors.torch import load_file
    return {k:v.tolist() for k,v in load_file(Path(folder)/'model.safetensors').items()}

def _figures(folder): return json.loads((Path(folder)/'config.json').read_text(encoding='utf-8'))['figures']

def _right(folder, files, labels):
    "Share of the files that a saved classifier answers with their labels"
    clf = from_pretrained(folder)
    return np.mean([clf.predict(o).label==k for o,k in zip(files, labels)])

def _pairs():
    "Eight files to learn from and their labels; five to hold out, which are shorter, and five others"
    files = sorted((o for o in digit_files('starter') if digit_label(o) in '16'), key=lambda o: -load_audio(o).dur)
    few = [o for k in '16' for o in [f for f in files if digit_label(f)==k][:4]]
    rest = [o for o in files if o not in few][-10:]
    return few,[digit_label(o) for o in few],rest[::2],rest[1::2]

def _held_out(train):
    "Call `train(folder, files, labels, held)` with other labels, and with other sounds, of what is held out: the same weights, their own figures"
    few,ys,held,others = _pairs()
    said = [digit_label(o) for o in held]
    wrong = ['6' if o=='1' else '1' for o in said]
    runs = dict(a=(held, said), b=(held, wrong), c=(others, [digit_label(o) for o in others]))
    for k,(fs,ls) in runs.items():
        out = train(k, few+fs, ys+ls, 5)
        acc = _figures(k)['accuracy']
        assert acc==pytest.approx(_right(k, fs, ls)) and f'Right on {acc:.1%}' in out and _figures(k)['n']==5
    assert _figures('a')['accuracy']==pytest.approx(1-_figures('b')['accuracy'])
    assert _tensors('a')==_tensors('b')==_tensors('c')

def test_train_is_honest(cli, monkeypatch):
    "And how many processes read ahead is none of the settings that a training must share"
    runs,real = [],cli_mod._begin
    monkeypatch.setattr(cli_mod, '_begin', lambda folder, run: runs.append(run) or real(folder, run))
    def _train(name, files, labels, n):
        rows = [f"{o},{k},{'yes' if i>=len(files)-n else 'no'}" for i,(o,k) in enumerate(zip(files, labels))]
        Path('t.csv').write_text('\n'.join(['file,label,valid', *rows])+'\n')
        return cli('train', 't.csv', '--out', name, '--epochs', 1, '--dur', 2, '--sr', 8000, '--bs', 4)
    _held_out(_train)
    assert all('workers' not in o for o in runs)

def test_demo_is_honest(cli, monkeypatch):
    def _demo(name, files, labels, n):
        splits = list(range(len(files)-n)),list(range(len(files)-n, len(files)))
        monkeypatch.setattr(cli_mod, '_digits', lambda: (files, labels, splits, 'five'))
        return cli('demo', '--epochs', 1, '--model', name)
    _held_out(_demo)

def test_draw():
    held = cli_mod._draw(['a']*20 + ['b']*2 + ['c'], 20, 1)
    assert (sum(held[:20]),sum(held[20:22]),held[22])==(4,1,False)
    with expect_fail(ValueError, 'no clips to hold out'): cli_mod._split(['a','b'], cli_mod._draw(['a','b'], 20, 1))

# train-asr and transcribe
accents = dict(zip('yes no go stop help start enter repeat erase rubout'.split(), 'sí no voy alto ay ya niño otra año más'.split()))

def spoken(csv='t.csv', n=30, **more):
    "A csv of the starter set's single words, written in Spanish; `more` rows of file and text"
    from fastaudio_lite.text import read_starter
    df = read_starter()
    df = df[df.text.isin(accents)].sort_values(['split','file'], ascending=False)[:n]
    rows = [f"{o.file},{accents[o.text].title()}!,{o.speaker},{'test' if i%10==0 else 'valid' if i%10==1 else 'train'}" for i,o in enumerate(df.itertuples())]
    rows += [f'{k},{v},nobody,train' for k,v in more.items()]
    Path(csv).write_text('\n'.join(['file,text,speaker,split', *rows])+'\n', encoding='utf-8')
    return df.file.tolist()

asr_tiny = '--epochs 2 --tokens 0 --hidden 16 --layers 1 --sr 8000 --no-augment'.split()

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A recognizer that was trained a little by the command, and what it printed"
    import contextlib, io
    path,old,buf = tmp_path_factory.mktemp('asr'),Path.cwd(),io.StringIO()
    os.chdir(path)
    try:
        spoken()
        with contextlib.redirect_stdout(buf): assert main(['train-asr', '--data', 't.csv', '--out', 'm', '--epochs', '12', *asr_tiny[2:]])==0
    finally: os.chdir(old)
    return path/'m',buf.getvalue()

def test_train_asr(trained):
    "From a csv of thirty files to a recognizer of Spanish letters; nothing but the model is left"
    folder,out = trained
    assert sorted(os.listdir(folder))==model_files and sorted(os.listdir(folder.parent))==['m','t.csv']
    assert out.count('epoch ')==12 and 'WER' in out and 'train 24 clips' in out and 'test  3 clips' in out
    assert ' on 3 test clips' in out and out.count('\n  ')<=3
    d = json.loads((folder/'config.json').read_text(encoding='utf-8'))
    assert {'á','ñ','í'} <= set(d['config']['tokens']['vocab']) and not {'A','!'} & set(d['config']['tokens']['vocab'])
    f = d['figures']
    assert (f['n'],f['epochs'],f['trained_on'])==(3,12,24) and f['split'].startswith('test') and 0<=f['cer'] and 0<=f['wer']
    tr = from_pretrained(folder)
    assert tr.sr==8000 and abs(tr.step-step_dur)<1e-9 # what transcripts were checked with

def test_train_asr_bad_rows(capsys):
    "Bad rows are named with their reason and left out"
    spoken(**{'no.wav':'hola'})
    rows = [o.split(',') for o in Path('t.csv').read_text(encoding='utf-8').splitlines()]
    rows[2][1],rows[3][1],rows[4][1] = 'ξένος','','muy larga '*30
    Path('t.csv').write_text('\n'.join(map(','.join, [*rows, rows[5]]))+'\n', encoding='utf-8')
    assert main(['train-asr', '--data', 't.csv', '--out', 'm', *asr_tiny])==0
    out,err = capsys.readouterr()
    for o,msg in zip((rows[2], rows[3], rows[4], ['no.wav'], rows[5]), ('letters outside the alphabet', 'empty transcript', 'too long', 'missing file', 'listed before')):
        assert any(Path(o[0]).name in line and msg in line for line in err.splitlines()), msg
    assert len(err.splitlines())==5 and 'train 22 clips' in out

def _bad_asr():
    yield 'no such table', ['--data', 'none.csv'], 'none.csv, expected a csv file with the columns file and text: no such file'
    yield 'no data', [], 'got no data, expected an4, starter, or a csv'
    yield 'two data', ['t.csv', '--data', 'an4'], 'got t.csv and --data an4, expected one of them'
    yield 'odd', ['t.csv', '--hidden', '33'], 'got --hidden 33, expected an even number'
    yield 'valid', ['t.csv', '--valid', '.2'], 'got --valid 0.2, expected a number from 1'
    yield 'unknown name', ['--data', 'an5'], 'expected an4, starter, or a csv'
    yield 'tokens', ['t.csv', '--tokens', '3'], 'got 3 pieces for'
    yield 'epochs', ['--data', 't.csv', '--epochs', '0'], 'got --epochs 0'
    yield 'out', ['--data', 't.csv', '--out', 't.csv'], 't.csv'
    yield 'columns', ['--data', 'c.csv'], 'expected text too'

@pytest.mark.parametrize('name,args,msg', _bad_asr(), ids=lambda o: o if isinstance(o, str) else '')
def test_train_asr_errors(name, args, msg, capsys):
    spoken(n=6)
    Path('c.csv').write_text('file,words\na.wav,b\n')
    assert main(['train-asr', *args])==2
    err = capsys.readouterr().err
    assert msg in err and len(err.splitlines())==1 and left()==['c.csv','t.csv']

def test_valid_share():
    "Of the speakers, where the table names no split"
    rows = [f'{i}.wav,sí,s{i}' for i in range(10)]
    Path('t.csv').write_text('\n'.join(['file,text,speaker', *rows]), encoding='utf-8')
    for pct in (20, 50): assert (cli_mod._speech('t.csv', pct).split=='valid').sum()==pct/10

def test_train_asr_damaged_test(capsys):
    "A header that promises what is not there, found after the training: named, and the model is saved and measured on the rest"
    spoken()
    sf.write('cut.flac', np.random.default_rng(0).normal(size=8000)*.1, 8000)
    Path('cut.flac').write_bytes(Path('cut.flac').read_bytes()[:4000])
    sf.write('mute.wav', np.zeros(8000), 8000)
    with open('t.csv', 'a', encoding='utf-8') as f: f.write('cut.flac,sí,s1,test\nmute.wav,sí,s2,test\n')
    assert main(['train-asr', 't.csv', '--out', 'm', *asr_tiny])==0
    out,err = capsys.readouterr()
    cut,mute = _no_doubts(err)
    assert 'left out of the figures: ' in cut and 'cut.flac' in cut and 'mute.wav: got silence' in mute
    assert ' on 4 test clips' in out and json.loads(Path('m/config.json').read_text(encoding='utf-8'))['figures']['n']==4

def test_train_asr_stopped_while_measuring(capsys, monkeypatch):
    "The model is there already, and the same command measures it"
    spoken()
    args = ['train-asr', 't.csv', '--out', 'm', *asr_tiny]
    with monkeypatch.context() as m:
        m.setattr(cli_mod, '_score_asr', lambda *args: _interrupt())
        assert main(args)==130 and 'the same command goes on' in capsys.readouterr().err
    assert 'wer' not in json.loads(Path('m/config.json').read_text(encoding='utf-8'))['figures']
    assert main(args)==0 and 'epoch' not in capsys.readouterr().out and sorted(os.listdir())==['m','t.csv']
    assert 'wer' in json.loads(Path('m/config.json').read_text(encoding='utf-8'))['figures']

def test_settings_of_a_training():
    "What differs is named; nobody is told a checksum, nor of a json"
    run,folder = dict(lr=.1, bs=8, recordings='3f'),Path('.m-training')
    cli_mod._begin(folder, run)
    (folder/'checkpoint.pt').touch()
    with expect_fail(ValueError, 'got lr 0.2, expected lr 0.1, with which .m-training was begun'): cli_mod._begin(folder, dict(run, lr=.2))
    with expect_fail(ValueError, 'got other recordings, labels or texts, expected those'): cli_mod._begin(folder, dict(run, recordings='9b'))
    for o in (b'{"lr"', b'[]', b'{}', b'\xff\xfe', b'['*10**5, None):
        if o is None: (folder/'settings.json').unlink()
        else: (folder/'settings.json').write_bytes(o)
        with expect_fail(ValueError, 'settings.json, which is missing'): cli_mod._begin(folder, run)

def test_files_of_others():
    "Nothing goes that no training wrote: notes, a link, a file that bears a name of ours"
    folder = Path('.m-training')
    for make in (folder.mkdir, lambda: folder.symlink_to('other')):
        Path('other').mkdir(exist_ok=True)
        make()
        (folder/'thesis.txt').write_text('mine')
        with cli_mod._resumable(Path('m')) as o:
            cli_mod._begin(o, dict(lr=.1, recordings='3f'))
            for k in ('checkpoint.pt','.checkpoint.pt.0a1b2c3d.tmp'): (o/k).touch()
        assert os.listdir(folder)==['thesis.txt']
        (folder/'settings.json').write_text('{"theme":"dark"}')
        with expect_fail(ValueError, 'not of a training'):
            with cli_mod._resumable(Path('m')): pass
        assert sorted(os.listdir(folder))==['settings.json','thesis.txt']
        if folder.is_symlink(): return
        shutil.rmtree(folder)

@pytest.mark.skipif(os.name!='posix', reason='no locks')
def test_two_trainings():
    "The second one is told at once, and takes nothing from the first"
    with cli_mod._resumable(Path('new/m')) as o:
        cli_mod._begin(o, dict(lr=.1, recordings='3f'))
        with expect_fail(ValueError, 'which another process is training now'):
            with cli_mod._resumable(Path('new/m')): pass
        assert (o/'settings.json').exists()
    assert not Path('new').exists()

def _killed(args, ck):
    "Start the command in a shell of its own and kill it after its first epoch"
    p = subprocess.Popen([sys.executable, '-c', 'from fastaudio_lite.cli import main; main()', *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not ck.exists() and p.poll() is None: time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    assert p.wait()==-signal.SIGKILL and ck.exists(), p.stderr.read()

def test_train_asr_resumes(capsys, monkeypatch):
    "Killed: the same command goes on; another one is told what differs; Ctrl-C says so; at the end nothing is left"
    import torch
    spoken()
    args,ck = ['train-asr', '--data', 't.csv', '--out', 'm', '--epochs', '400', *asr_tiny[2:]],Path('.m-training/checkpoint.pt')
    _killed(args, ck)
    done = torch.load(ck, weights_only=True)['epoch']
    assert main([*args, '--lr', '.1'])==2 and 'got lr 0.1, expected lr default, with which .m-training was begun' in capsys.readouterr().err
    with monkeypatch.context() as m:
        m.setattr(cli_mod, '_asr_line', lambda o: _interrupt() if len(o)>4 and o[0]>done else None)
        assert main(args)==130
    out,err = capsys.readouterr()
    assert 'going on from .m-training' in out and err=='fastaudio-lite: stopped; the same command goes on where it stopped\n'
    d = torch.load(ck, weights_only=True)
    assert d['epoch']>done and not Path('m').exists()
    torch.save(dict(d, epoch=399), ck) # but one
    assert main(args)==0
    out = capsys.readouterr().out
    assert out.count('epoch ')==1 and 'epoch 400 ' in out and sorted(os.listdir())==['m','t.csv']

def test_train_asr_is_honest(cli, monkeypatch):
    "Other texts, or other sounds, of validation and test: the same weights, and an error rate of the test"
    from fastaudio_lite.asr.transcribe import Transcriber, Transcript
    spoken(n=20)
    rows = [o.split(',') for o in Path('t.csv').read_text(encoding='utf-8').splitlines()]
    held = [i for i,o in enumerate(rows) if o[3] in ('valid','test')]
    said = {o[0]:o[1].lower().strip('!') for o in rows}
    monkeypatch.setattr(Transcriber, 'transcribe', lambda self, fn: Transcript(said[str(fn)], [], 1., 1.))
    def _train(name, column=None):
        now = [list(o) for o in rows]
        if column is not None:
            for i,j in zip(held, held[1:]+held[:1]): now[i][column] = rows[j][column]
        Path('t.csv').write_text('\n'.join(map(','.join, now))+'\n', encoding='utf-8')
        return cli('train-asr', 't.csv', '--out', name, *asr_tiny, '--epochs', 1)
    for k,column in dict(a=None, b=1, c=0).items(): _train(k, column)
    assert [_figures(k)['wer']>0 for k in 'abc']==[False,True,True] and _figures('a')['n']==2
    assert _tensors('a')==_tensors('b')==_tensors('c')

def _interrupt(): raise KeyboardInterrupt

@pytest.fixture(scope='module')
def asr(tmp_path_factory):
    "A saved recognizer that says a lot, all of it nonsense"
    from test_transcribe import make
    from fastaudio_lite.export import save_pretrained
    return save_pretrained(make(), tmp_path_factory.mktemp('asr')/'es')

@pytest.fixture
def clips():
    "A folder of two clips, an hour of nothing in a moment, and one that is broken"
    Path('clips').mkdir()
    files = spoken(n=4)
    for o in files[:2]: shutil.copy(o, 'clips')
    Path('bad.wav').write_text('no sound')
    sf.write('silence.wav', np.zeros(8000), 8000)
    return sorted(f'clips/{Path(o).name}' for o in files[:2])

def run(capsys, *args):
    capsys.readouterr()
    return main(args),*capsys.readouterr()

def _no_doubts(err): return [o for o in err.splitlines() if 'confidence' not in o]

def test_transcribe(asr, clips, capsys):
    "A line a file, from a folder; silence warns, a broken file is an error and does not stop the others"
    code,out,err = run(capsys, 'transcribe', 'bad.wav', 'clips', 'silence.wav', '--model', asr)
    rows = [o.split('\t') for o in out.splitlines()]
    assert code==2 and [o[0] for o in rows]==[*clips,'silence.wav'] and all(len(o)==2 for o in rows) and rows[-1][1]==''
    bad,silent = _no_doubts(err)
    assert 'bad.wav' in bad and 'warning: silence.wav: got silence' in silent

def test_transcribe_forms(asr, clips, capsys):
    "Words, json, srt and vtt say the same"
    code,out,_ = run(capsys, 'transcribe', *clips, 'silence.wav', '--model', asr, '--json')
    doc = json.loads(out)
    t = doc['transcripts']
    assert code==0 and doc['errors']==[] and [o['file'] for o in t]==[*clips,'silence.wav'] and t[2]['text']=='' and len(t[2]['warnings'])==1
    code,out,_ = run(capsys, 'transcribe', *clips, '--model', asr, '--words')
    rows = [o.split('\t') for o in out.splitlines()]
    want = [[o['file'], f"{w['start']:.2f}", f"{w['end']:.2f}", w['text'], f"{w['prob']:.4f}"] for o in t for w in o['words']]
    assert code==0 and rows==want and want
    one = next(o for o in t if o['words'])
    srt,vtt = (run(capsys, 'transcribe', one['file'], '--model', asr, k)[1] for k in ('--srt','--vtt'))
    assert srt.startswith('1\n00:00:0') and ' --> ' in srt and one['words'][0]['text'] in srt and vtt.startswith('WEBVTT\n\n')

def test_transcribe_doubts(asr, capsys):
    "What is no speech gets a warning, or no words"
    sf.write('noise.wav', np.random.default_rng(0).normal(size=(48000,2))*.1, 48000)
    code,out,err = run(capsys, 'transcribe', 'noise.wav', '--model', asr, '--json')
    o, = json.loads(out)['transcripts']
    assert code==0 and bool(o['words'] and o['prob']<.5)==('confidence' in err)==any('confidence' in w for w in o['warnings'])

def test_transcribe_progress(asr, capsys, monkeypatch):
    "Where somebody looks, a bar for a long file"
    sf.write('long.wav', np.random.default_rng(0).normal(size=8000*45)*.1, 8000)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert '45/45' in run(capsys, 'transcribe', 'long.wav', '--model', asr)[2]

def test_bar_is_rubbed_out(capsys, monkeypatch):
    "Also where fewer seconds come than the header promises"
    from fastaudio_lite.asr.transcribe import Transcript
    class Short:
        def transcribe(self, fn, progress):
            progress(40)
            return Transcript('', [], 0., 40.)
    sf.write('long.wav', np.zeros(8000*45), 8000)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    cli_mod._write_down(Short(), 'long.wav')
    assert '40/45' in (err := capsys.readouterr().err) and err.endswith('\r\033[K')

def test_transcribe_device(asr, clips, capsys, monkeypatch):
    "The settings' device, or an error; never another one in silence"
    monkeypatch.setenv('FASTAUDIO_LITE_DEVICE', 'cuda:99')
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    code,out,err = run(capsys, 'transcribe', clips[0], '--model', asr)
    assert (code,out)==(2,'') and 'PyTorch finds no such device' in err

arpa = '\\data\\\nngram 1=4\n\n\\1-grams:\n-99 <s>\n-1 </s>\n-.5 {}\n-.5 {}\n\n\\end\\\n'

def test_transcribe_decoders(asr, clips, capsys):
    "A language model in capitals, a lexicon, words to listen for"
    Path('lm.arpa').write_text(arpa.format('MÁS', 'NIÑO'), encoding='utf-8')
    Path('words.txt').write_text('Más\n\nniño,\n', encoding='utf-8')
    code,out,err = run(capsys, 'transcribe', *clips, '--model', asr, '--lm', 'lm.arpa', '--alpha', '1', '--beta', '.5', '--beam', '8',
        '--lexicon', 'words.txt', '--hotwords', 'más, Niño')
    assert code==0 and not _no_doubts(err)
    assert {w for o in out.splitlines() for w in o.split('\t')[1].split()} <= {'más','niño'}

def _bad_transcribe():
    yield 'alien lm', ['--lm', 'alien.arpa'], 'expected the letters that the recognizer writes'
    yield 'cut lm', ['--lm', 'cut.arpa'], 'cut.arpa'
    yield 'no lm', ['--lm', 'no.arpa'], 'no.arpa'
    yield 'lm of bytes', ['--lm', 'bytes.arpa'], 'bytes.arpa'
    yield 'alpha', ['--alpha', '1'], 'without --lm'
    yield 'beam', ['--beam', '0'], 'got --beam 0'
    yield 'no lexicon', ['--lexicon', 'no.txt'], 'no.txt'
    yield 'empty lexicon', ['--lexicon', 'empty.txt'], 'without a word'
    yield 'alien hotword', ['--hotwords', 'ξένος'], 'a hotword'
    yield 'two forms', ['--srt', '--json'], 'got --json and --srt'
    yield 'two files', ['--srt', 'silence.wav'], 'one file at a time'
    yield 'folder', ['empty'], 'no audio in it'

@pytest.mark.parametrize('name,args,msg', _bad_transcribe(), ids=lambda o: o if isinstance(o, str) else '')
def test_transcribe_errors(name, args, msg, asr, clips, capsys):
    "One line, and no answers"
    Path('alien.arpa').write_text(arpa.format('ξένος', 'λόγος'), encoding='utf-8')
    Path('cut.arpa').write_text(arpa.format('más', 'niño')[:-25], encoding='utf-8')
    Path('bytes.arpa').write_bytes(bytes(range(256)))
    Path('empty.txt').write_text('\n')
    Path('empty').mkdir()
    code,out,err = run(capsys, 'transcribe', clips[0], *args, '--model', asr)
    assert (code,out)==(2,'') and msg in err and len(err.splitlines())==1

def test_wrong_model(asr, clips, cli, capsys):
    "A recognizer is no classifier, a classifier no recognizer, a folder of sounds neither"
    cli('train', words(Path('words'), 4), '--epochs', 1, '--out', 'clf')
    for args in (('transcribe', clips[0], '--model', 'clf'), ('predict', clips[0], '--model', asr), ('transcribe', clips[0], '--model', 'clips'),
        ('transcribe', clips[0], '--model', 'none'), ('transcribe', clips[0]), ('transcribe', '--model', asr)):
        code,out,err = run(capsys, *args)
        assert (code,out)==(2,'') and len(err.splitlines())==1 and err.startswith('fastaudio-lite: ')

def test_model_of_another_kind(clips, capsys):
    "Hidden Markov models are neither: a sentence that says what it is"
    from fastaudio_lite.asr.hmm import HMMDigits
    from fastaudio_lite.export import save_pretrained
    save_pretrained(HMMDigits(['one','two'], n_mix=1), 'hmm')
    for name,want in dict(transcribe='recognizer', predict='classifier').items():
        code,out,err = run(capsys, name, clips[0], '--model', 'hmm')
        assert (code,out)==(2,'') and f'got a hmm in hmm, expected a {want}' in err and err.count('\n')==1

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

# export
def test_export(tmp_path, cli, capsys):
    "A file that answers as the model does; each mistake is one line and leaves nothing"
    ort = pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
    pytest.importorskip('onnxscript', reason='the extra onnx is not installed')
    from test_export import make, sound
    from fastaudio_lite.export import save_pretrained
    clf = make()
    save_pretrained(clf, 'm')
    assert cli('export', 'm', '--onnx', 'new/m.onnx').startswith(f"Written: {Path('new/m.onnx')} (1 MB); in: wav, float32 at 8000 Hz")
    wav = sound().numpy()[None]
    probs, = ort.InferenceSession('new/m.onnx').run(None, dict(wav=wav, lens=np.array([wav.shape[-1]])))
    assert np.allclose(probs[0], list(clf.predict(sound()).probs.values()), atol=1e-4)
    before = left()
    bad = {('m',):'got no file to write', ('m', '--onnx', 'm.pt'):'ends in .onnx', ('no', '--onnx', 'x.onnx'):'there is no such folder',
        ('me/no', '--onnx', 'x.onnx'):'the setting offline is on', ('m', '--onnx', 'm/config.json/x.onnx'):'is a file, expected a folder'}
    for args,msg in bad.items():
        assert main(['export', *args])==2
        out,err = capsys.readouterr()
        assert out=='' and msg in err and err.count('\n')==1, err
    assert left()==before

# One reader, and names as they come
def test_train_says_what_it_reads(capsys):
    "A split is the table's, folds are asked about, and recordings on both sides are told of"
    words(Path('w'), 4)
    files = sorted(Path('w').glob('*/*.wav'))
    def table(head, f): Path('t.csv').write_text('\n'.join([head, *(f'{o},{o.parent.name},{f(i)}' for i,o in enumerate(files))])+'\n')
    table('file,label,split', lambda i: ['train','train','valid','test'][i%4])
    code,out,err = run(capsys, 'train', 't.csv', '--epochs', 1)
    assert code==0 and '4 clips of 2 classes' in out and 'held out: 2, as the source says' in out and 'got 2 rows for the test' in err
    table('file,label,fold', lambda i: i%4)
    assert main(['train', 't.csv'])==2 and 'column fold' in capsys.readouterr().err
    table('file,label,x', lambda i: '')
    Path('t.csv').write_text(Path('t.csv').read_text() + f'{files[0]},other,\n')
    assert main(['train', 't.csv'])==2 and 'the same recording' in capsys.readouterr().err

def test_cells(capsys):
    assert cli_mod._cell('a\tb\nc\x85d é')=='a\\tb\\nc\\x85d é'
    res = dict(file='a\tb.wav', probs={'x\ny':1.}, windows=[])
    assert cli_mod._tabs(res, 1, False)==['a\\tb.wav\tx\\ny\t1.0000']

@pytest.mark.parametrize('encoding', ['ascii','cp1252','utf-8'])
def test_json_in_any_encoding(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr('sys.stdout', io.TextIOWrapper(raw, encoding=encoding, errors='backslashreplace'))
    cli_mod._print_json([dict(file='日é😀\udce9.wav')])
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding))['predictions']==[dict(file='日é😀\udce9.wav')]

def test_after_two_dashes():
    f,files,kw = cli_mod._parse(['predict', 'a.wav', '--model', 'm', '--', '-b.wav', '--json'])
    assert files==['a.wav','-b.wav','--json'] and kw['model']=='m' and not kw['json']
    assert cli_mod._parse(['train', '--epochs', '3', '--', '-pets'])[2]['source']==Path('./-pets')
