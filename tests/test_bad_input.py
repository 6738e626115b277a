"Bad input, from Python and from the shell: one clear line, exit code 2, nothing half-written"
import errno, json, os, signal, struct, subprocess, sys, textwrap, time, warnings, zipfile
from pathlib import Path

import numpy as np, pytest, soundfile as sf, torch

from fastaudio_lite.audio import AudioError, AudioTensor, AudioWarning, load_audio
from fastaudio_lite.classifier import AudioCNN, Classifier
from fastaudio_lite.cli import main
from fastaudio_lite.data import AudioBlock
from fastaudio_lite.datasets import DataSet, registry
from fastaudio_lite.export import save_pretrained
from fastaudio_lite.spectrogram import FrontEnd

def tone(dur=.5, sr=8000, hz=440., chs=1):
    "A tone with some noise `(T,chs)`"
    t = np.arange(round(dur*sr))/sr
    x = .3*np.sin(2*np.pi*hz*t)[:,None] + .01*np.random.default_rng(round(hz)).standard_normal((len(t), chs))
    return x.astype('float32')

def write(fn, x=None, sr=8000, **kwargs):
    fn.parent.mkdir(parents=True, exist_ok=True)
    sf.write(fn, tone(sr=sr) if x is None else x, sr, **kwargs)
    return fn

@pytest.fixture(scope='module')
def clf():
    torch.manual_seed(0)
    return Classifier(dict(front_end=FrontEnd(8000, n_mels=16, hop=800), model=AudioCNN(2), vocab=['no','yes'], arch='AudioCNN', n_in=1, multi=False, dur=2.))

@pytest.fixture(scope='module')
def model(clf, tmp_path_factory): return save_pretrained(clf, tmp_path_factory.mktemp('m')/'tiny', {})

@pytest.fixture(scope='module')
def asr(tmp_path_factory):
    from test_transcribe import make
    return save_pretrained(make(), tmp_path_factory.mktemp('m')/'asr', {})

@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    "No data but the starter set, no network, and a working directory of one's own"
    monkeypatch.setenv('FASTAUDIO_LITE_DATA_PATH', str(tmp_path/'data'))
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'yes')
    monkeypatch.delenv('FASTAUDIO_LITE_DEBUG', raising=False)
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')

@pytest.fixture
def cli(capsys):
    "Run a command in this process: exit code, output, lines of errors"
    def _run(*args):
        capsys.readouterr()
        code = main(args)
        out,err = capsys.readouterr()
        return code,out,err.splitlines()
    return _run

def one_line(res, *words):
    "Is `res` an error in one line that holds `words`? Then the output before it"
    code,out,err = res
    assert code==2 and len(err)==1 and err[0].startswith('fastaudio-lite: '), res
    assert 'Traceback' not in err[0] and 'Error:' not in err[0], err
    for o in words: assert o in err[0], err
    return out

# Sounds that cannot be used
def cut(share, **kwargs):
    "A file cut off after `share` of its bytes"
    def _make(fn):
        raw = write(fn, tone(3.), **kwargs).read_bytes()
        fn.write_bytes(raw[:int(len(raw)*share)])
    return _make

def header(sr=8000, chs=1, bits=16, size=800, real=800):
    "A wav file whose header says what it likes"
    def _make(fn):
        fmt = struct.pack('<HHIIHH', 1, chs, sr, sr*chs*bits//8 & 0xffffffff, chs*bits//8 & 0xffff, bits)
        fn.write_bytes(b'RIFF' + struct.pack('<I', size+36 & 0xffffffff) + b'WAVEfmt ' + struct.pack('<I', 16) + fmt + b'data' + struct.pack('<I', size) + bytes(real))
    return _make

def samples(*xs, subtype='FLOAT'): return lambda fn: write(fn, np.array(xs, 'float32'), subtype=subtype)
def spoiled(v): return lambda fn: write(fn, np.where(np.arange(4000)==77, v, tone()[:,0]), subtype='FLOAT')

bad_sounds = {'missing.wav': lambda fn: None, 'folder.wav': lambda fn: fn.mkdir(), 'empty.wav': lambda fn: fn.touch(),
    'text.wav': lambda fn: fn.write_text('This is not a sound.\n'*50), 'text.mp3': lambda fn: fn.write_text('nor is this'),
    'random.flac': lambda fn: fn.write_bytes(os.urandom(5000)),
    'cut.wav': cut(.6), 'cut.flac': cut(.6), 'cut.ogg': cut(.6), 'header_only.wav': cut(.0005),
    'huge.wav': header(size=0x7effffff), 'rate_0.wav': header(sr=0), 'rate_huge.wav': header(sr=4_000_000_000),
    'channels_0.wav': header(chs=0), 'channels_65535.wav': header(chs=65535),
    'no_samples.wav': samples(), 'no_samples.flac': samples(subtype='PCM_16'),
    'nan.wav': spoiled(np.nan), 'inf.wav': spoiled(np.inf), 'minus_inf.wav': spoiled(-np.inf)}

@pytest.fixture(params=bad_sounds)
def bad(request, tmp_path):
    fn = tmp_path/request.param
    bad_sounds[request.param](fn)
    return fn

def test_bad_sound(bad, clf, cli, model, asr):
    with pytest.raises((AudioError,FileNotFoundError)) as e: load_audio(bad)
    assert bad.name in str(e.value) and '\n' not in str(e.value)
    with pytest.raises((AudioError,FileNotFoundError)): clf.predict(bad)
    assert one_line(cli('predict', bad, '--model', model), bad.name)=='' == one_line(cli('transcribe', bad, '--model', asr), bad.name)

def test_bad_among_good(cli, model, tmp_path):
    "The good ones are answered"
    good = [write(tmp_path/f'{i}.wav') for i in range(2)]
    (tmp_path/'bad.wav').write_text('no sound')
    args = ['predict', good[0], tmp_path/'bad.wav', tmp_path/'none.wav', good[1], '--model', model]
    code,out,err = cli(*args)
    assert code==2 and len(err)==2 and [o.split('\t')[0] for o in out.splitlines()]==list(map(str, good))
    code,out,err = cli(*args, '--json')
    res = json.loads(out)
    assert code==2 and [len(res[k]) for k in ('predictions','errors')]==[2,2] and 'bad.wav' in res['errors'][0]['error']

# Sounds that are odd, and fine
@pytest.mark.parametrize('n', (1, 2, 79, 201))
def test_short(n, cli, model, tmp_path):
    "One sample is a constant, and so is silence"
    err = answer(cli, write(tmp_path/'a.wav', tone()[:n]), model)[0]
    assert [o for o in err if 'got silence' not in o]==[] and (n==1 or not err)

def answer(cli, fn, model):
    "Lines of errors, and what was said of `fn`"
    code,out,err = cli('predict', fn, '--model', model, '--json')
    res = json.loads(out)['predictions'][0]
    assert code==0 and all(0<=v<=1 for v in res['probs'].values()) and abs(sum(res['probs'].values())-1)<1e-4
    return err,res

@pytest.mark.parametrize('sr', (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000))
def test_rates(sr, cli, model, tmp_path):
    "The same sound at any rate gets the same answer"
    err,res = answer(cli, write(tmp_path/'a.wav', tone(1., sr)), model)
    ref = answer(cli, write(tmp_path/'b.wav', tone(1.)), model)[1]
    assert err==[] and abs(res['probs']['yes']-ref['probs']['yes'])<.05

@pytest.mark.parametrize('ext', ('wav', 'flac', 'ogg'))
def test_eight_channels(ext, cli, model, tmp_path):
    fn = write(tmp_path/f'a.{ext}', tone(chs=8))
    assert load_audio(fn).shape[0]==1 and load_audio(fn, mono=False).shape[0]==8
    assert answer(cli, fn, model)[0]==[]

@pytest.mark.parametrize('n', (800, 8000, 60_000))
def test_silence(n, clf, cli, model, tmp_path):
    "A label, as of every sound, and a warning"
    fn = write(tmp_path/'mute.wav', np.zeros(n, 'float32'))
    with pytest.warns(AudioWarning, match='silence'): assert clf.predict(fn).silent
    err,res = answer(cli, fn, model)
    assert len(err)==1 and err[0].startswith('fastaudio-lite: warning: ') and 'mute.wav' in err[0] and 'silence' in err[0]
    assert res['silent'] and len(res['warnings'])==1

def test_silent_batch(clf):
    "Silence beside sound spoils neither"
    x = torch.stack([torch.zeros(1, 4000), torch.from_numpy(tone()).T])
    probs = clf(AudioTensor(x, sr=8000))
    assert probs.isfinite().all()
    torch.testing.assert_close(probs[1:], clf(AudioTensor(x[1:], sr=8000)))

long_run = """
    import resource, sys
    from fastaudio_lite.classifier import Classifier
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clf = Classifier(sys.argv[1])
    clf.predict(sys.argv[2])
    before = peak()
    p = clf.predict(sys.argv[3])
    sounding = [o for o in p.windows if o.text]
    print(peak()-before, len(p.windows), len(sounding), sounding[-1].end, p.silent)"""

def test_long_recording(model, tmp_path):
    "An hour and a half (86 MB, a sparse file) are heard in windows; memory grows by less than the file has"
    sr,n = 8000,5400*8000
    header(size=2*n, real=0)(fn := tmp_path/'long.wav')
    with open(fn, 'r+b') as f:
        for s in (100, 5300): f.seek(44 + s*sr*2) and f.write((tone(5.)*2**15).astype('<i2').tobytes())
        f.truncate(44 + 2*n)
    short = write(tmp_path/'short.wav', tone(60.))
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(long_run), model, short, fn], text=True, capture_output=True)
    assert res.returncode==0, res.stderr
    kb,n_wins,n_sound,end,silent = res.stdout.split()
    assert int(kb) < 60_000 and int(n_wins) in (5399,5400) and 10 <= int(n_sound) <= 14 and float(end) >= 5305 and silent=='False'

# Folders, tables and settings
def pets(path, n=4, srs=(8000,)):
    "A folder of two classes of `n` clips"
    for k,hz in dict(cat=900, dog=300).items():
        for i in range(n): write(path/k/f'{i}.wav', tone(.3, srs[i%len(srs)], hz+10*i), srs[i%len(srs)])
    return path

def left(path): return sorted(str(o.relative_to(path)) for o in path.rglob('*'))

def test_no_source(cli): one_line(cli('train', 'nowhere'), 'nowhere', 'expected')

def test_empty_folder(cli, tmp_path):
    (tmp_path/'a').mkdir()
    one_line(cli('train', tmp_path/'a'), 'expected a folder of sounds for each class')

def test_class_without_audio(cli, tmp_path):
    (pets(tmp_path/'a')/'owl').mkdir()
    (tmp_path/'a'/'owl'/'readme.txt').write_text('to be recorded')
    one_line(cli('train', tmp_path/'a'), 'owl', 'no audio')

def test_one_class(cli, tmp_path):
    for i in range(3): write(tmp_path/'a'/'dog'/f'{i}.wav')
    one_line(cli('train', tmp_path/'a'), 'one class', 'dog')

def test_valid_without_train(cli, tmp_path):
    "A class that is only among the held-out clips"
    pets(tmp_path/'a'/'train')
    write(pets(tmp_path/'a'/'valid', 2)/'owl'/'0.wav')
    one_line(cli('train', tmp_path/'a'), 'owl', 'held-out')

def test_damaged_clip(cli, tmp_path):
    "Named before the training begins"
    (pets(tmp_path/'a')/'dog'/'1.wav').write_text('woof')
    assert one_line(cli('train', tmp_path/'a'), '1.wav')==''
    assert left(Path())==[]

tables = {'file,label\n': 'without a row', 'name,kind\na.wav,dog\n': "'name', 'kind'", 'file,label\na.wav,dog\nb.wav,\n': 'line 3', 'file,label\na.wav\n': 'line 2',
    'file,label\na.wav,dog\nnone.wav,cat\n': '1 of 2 files missing', 'file,label,valid\na.wav,dog,maybe\n': "got 'maybe' in the column 'valid'", 'file,label\na.wav,dog\na.wav,dog\n': 'one class',
    'file,label,valid\na.wav,dog,no\na.wav,cat,no\n': 'no clips to hold out'}

@pytest.mark.parametrize('text', tables)
def test_tables(text, cli, tmp_path):
    write(tmp_path/'a.wav')
    (tmp_path/'t.csv').write_text(text)
    one_line(cli('train', tmp_path/'t.csv'), tables[text])

def test_table_not_text(cli, tmp_path):
    (tmp_path/'t.csv').write_bytes(b'file,label\n\xff\xfe\x00')
    one_line(cli('train', tmp_path/'t.csv'), 'cannot be read')
    one_line(cli('train', write(tmp_path/'a.wav')), 'a.wav', 'csv')

@pytest.mark.parametrize('arg', ('--epochs=0', '--sr=10', '--dur=-1', '--valid=100', '--bs=0', '--lr=nan', '--workers=-1'))
def test_numbers(arg, cli, tmp_path): one_line(cli('train', pets(tmp_path/'a'), arg), arg.partition('=')[0], 'expected')

def test_unknown_arch(cli, tmp_path):
    for o in ('torchvision:nothing', 'timm:nothing', 'other:net'):
        code,_,err = cli('train', pets(tmp_path/'a'), '--arch', o, '--epochs', 1)
        assert code==2 and len(err)==1 and o.partition(':')[2] in err[0]
    assert left(Path())==[]

def test_mixed_rates_train(cli, tmp_path):
    code,out,err = cli('train', pets(tmp_path/'a', 6, (8000,44100,16000)), '--out', 'm', '--epochs', 2, '--bs', 4)
    assert (code,err)==(0,[]) and '16000 Hz' in out
    assert left(Path('m'))==['README.md', 'config.json', 'model.safetensors']
    assert answer(cli, tmp_path/'a'/'dog'/'0.wav', 'm')[0]==[]

def test_unknown_setting(cli, monkeypatch):
    Path('settings.ini').write_text('[fastaudio_lite]\ncolour = red\n')
    one_line(cli('get'), 'colour', 'settings.ini', 'data_path')
    code,out,err = cli('doctor')
    assert code==2 and len(err)==1 and 'colour' in err[0] and '1 thing to mend' in out
    Path('settings.ini').unlink()
    monkeypatch.setenv('FASTAUDIO_LITE_COLOUR', 'red')
    one_line(cli('get'), 'colour', 'environment')

def test_bad_setting(cli, monkeypatch):
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'perhaps')
    one_line(cli('get', 'fsdd'), 'perhaps', 'yes or no')

def test_damaged_cache(tmp_path):
    "Said, and healed"
    fn,cache = write(tmp_path/'a.wav'),tmp_path/'cache'
    cache.mkdir()
    load = AudioBlock(cache=cache).type_tfms[0]
    ref = load(fn)
    kept, = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:300])
    with pytest.warns(AudioWarning, match='damaged'): assert torch.equal(load(fn), ref)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(load(fn), ref)

# Models
def test_bad_models(cli, model, tmp_path):
    fn = write(tmp_path/'a.wav')
    one_line(cli('predict', fn), '--model')
    one_line(cli('predict', '--model', model), 'got no files')
    one_line(cli('predict', fn, '--model', tmp_path/'none'), 'none')
    one_line(cli('predict', fn, '--model', fn), 'a.wav')
    one_line(cli('predict', tmp_path/'cwd', '--model', model), 'no audio')

@pytest.mark.parametrize('name', ('model.safetensors', 'config.json'))
def test_damaged_model(name, cli, model, tmp_path):
    copy = tmp_path/'copy'
    copy.mkdir()
    for o in model.iterdir(): (copy/o.name).write_bytes(o.read_bytes()[:None if o.name!=name else o.stat().st_size//2])
    one_line(cli('predict', write(tmp_path/'a.wav'), '--model', copy), name)
    (copy/name).unlink()
    one_line(cli('predict', tmp_path/'a.wav', '--model', copy), name)

# Places that cannot be written
def test_unwritable_out(cli, monkeypatch, tmp_path):
    a = pets(tmp_path/'a')
    Path('file').write_text('mine')
    Path('full').mkdir()
    Path('full/thesis.txt').write_text('mine')
    for o,word in {'file/m':'file', 'file':'file', 'full':'thesis.txt'}.items(): assert one_line(cli('train', a, '--out', o), word)==''
    for o in ('file/demo.png', 'full', 'demo.jpg'): assert one_line(cli('demo', '--out', o), 'expected')==''
    assert one_line(cli('demo', '--model', 'full'), 'thesis.txt').count('epoch')==0
    monkeypatch.setattr(os, 'access', lambda *args, **kwargs: False)
    one_line(cli('train', a, '--out', 'm'), 'may not write')
    assert left(Path())==['file', 'full', 'full/thesis.txt']

def test_unreadable(cli, model, monkeypatch, tmp_path):
    def _denied(self): raise PermissionError(errno.EACCES, 'Permission denied', str(self))
    a = pets(tmp_path/'a')
    monkeypatch.setattr(Path, 'iterdir', _denied)
    one_line(cli('train', a), 'Permission denied')

def test_disk_full(cli, monkeypatch, tmp_path):
    "When the model is written: the training is not lost"
    def _full(self, *args, **kwargs):
        if 'checkpoint' in self.name: return real(self, *args, **kwargs)
        raise OSError(errno.ENOSPC, 'No space left on device', str(self))
    real = Path.write_bytes
    args = ['train', pets(tmp_path/'a'), '--out', 'm', '--epochs', 1]
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_bytes', _full)
        assert 'epoch  1' in one_line(cli(*args), 'No space left') and left(Path())==['.m-training', '.m-training/checkpoint.pt', '.m-training/settings.json']
    code,out,_ = cli(*args)
    assert code==0 and 'epoch  1' not in out and left(Path('m'))==['README.md', 'config.json', 'model.safetensors']

def shell(*args, **kwargs): return subprocess.Popen([sys.executable, '-c', 'from fastaudio_lite.cli import main; raise SystemExit(main())', *map(str, args)],
    text=True, stderr=subprocess.PIPE, **kwargs)

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
def test_full_output():
    with open('/dev/full', 'w') as f: p = shell('get', stdout=f)
    one_line((p.wait(), '', p.stderr.read().splitlines()), 'No space left')

# Archives
def toy(tmp_path, monkeypatch, body):
    "A data set whose archive holds `body`, served from the disk"
    (fn := tmp_path/'toy.zip').write_bytes(body)
    monkeypatch.setitem(registry, 'toy', DataSet('toy', 'A toy', fn.as_uri(), len(body), 'CC0', '*.wav', 1))
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'no')

def zipped(name):
    import io
    with zipfile.ZipFile(f := io.BytesIO(), 'w') as z: z.writestr(name, b'sound'*100)
    return f.getvalue()

def test_archives(cli, monkeypatch, tmp_path):
    for body,word in {b'PK no zip'*40: 'damaged', zipped('toy/a.wav')[:300]: 'damaged', zipped('../../evil.wav'): 'outside', zipped('toy/a.txt'): 'has 0 files'}.items():
        toy(tmp_path, monkeypatch, body)
        one_line(cli('get', 'toy'), word)
        assert left(tmp_path/'data')==[] and not list(tmp_path.rglob('evil.wav'))
    one_line(cli('get', 'toys'), "'toys'", 'fsdd')

def test_offline(cli): one_line(cli('get', 'fsdd'), 'offline', 'fsdd')

# Ctrl-C
@pytest.mark.parametrize('mark', ('to learn from', 'epoch  1'))
def test_ctrl_c(mark):
    "While it loads, and while it trains"
    p = shell('demo', stdout=subprocess.PIPE)
    for line in p.stdout:
        if mark in line: break
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert (p.returncode,err)==(130,'fastaudio-lite: stopped; nothing is left half-written\n')
    assert left(Path())==[]
