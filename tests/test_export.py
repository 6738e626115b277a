"Saved models: round trips, fresh processes, damaged and hostile folders, writing all or nothing"
import errno, hashlib, json, os, pickle, shutil, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np, pytest, safetensors.torch, torch, torch.nn as nn
from hypothesis import HealthCheck, given, settings, strategies as st

from fastaudio_lite import export
from fastaudio_lite.audio import AudioTensor
from fastaudio_lite.classifier import AudioCNN, Classifier
from fastaudio_lite.export import PretrainedError, _sum, from_pretrained, save_pretrained
from fastaudio_lite.kinds import Saved
from fastaudio_lite.spectrogram import FrontEnd

sr = 8000
files = ['README.md', 'config.json', 'model.safetensors']

def front_end(sr=sr, **kw): return FrontEnd(sr=sr, **kw).config()

def make(arch='AudioCNN', vocab='zero one two'.split(), seed=0, **kw):
    "A classifier with weights and statistics that no fresh one has"
    torch.manual_seed(seed)
    cfg = dict(arch=arch, n_in=1, vocab=vocab, dur=0.6, multi=False, front_end=front_end(n_mels=32))
    clf = Classifier.from_config({**cfg, **kw})
    for k,v in clf.state_dict().items():
        if v.is_floating_point(): v.add_(torch.rand_like(v)/20)
    return clf

def sound(n=4000, seed=0):
    g = torch.Generator().manual_seed(seed)
    return AudioTensor(torch.rand(1, n, generator=g)-0.5, sr=sr)

@pytest.fixture(scope='session')
def clf(): return make()

figures = dict(accuracy=0.5, split='none', n=2, seeds=1)

@pytest.fixture(scope='session')
def saved(clf, tmp_path_factory): return save_pretrained(clf, tmp_path_factory.mktemp('models')/'digits', figures)

@pytest.fixture
def copy(saved, tmp_path): return shutil.copytree(saved, tmp_path/'copy')

def config(folder): return json.loads((folder/'config.json').read_text(encoding='utf-8'))
def weights(folder): return safetensors.torch.load_file(folder/'model.safetensors')

def forge(folder, d=None, tensors=None):
    "Rewrite the folder with sums that fit, as an enemy would"
    d,tensors = config(folder) if d is None else d,weights(folder) if tensors is None else tensors
    raw = safetensors.torch.save(tensors, {'config_sha256':_sum(d['kind'], d['config'])})
    d['weights']['sha256'] = hashlib.sha256(raw).hexdigest()
    (folder/'model.safetensors').write_bytes(raw)
    (folder/'config.json').write_text(json.dumps(d), encoding='utf-8')
    return folder

def refused(folder, text, **kw):
    "The folder is refused in one sentence that holds `text`"
    with pytest.raises(PretrainedError) as e: from_pretrained(folder, **kw)
    msg = str(e.value)
    assert text in msg, msg
    assert len(msg)<600

# Round trips
@pytest.mark.parametrize('kw', [{}, dict(multi=True), dict(n_in=2), dict(vocab=['só', '一', 'a|b `c`\n'], dur=3),
    dict(front_end=front_end(kind='mfcc', deltas=2, n_mels=32, norm='clip'), n_in=3),
    dict(front_end=front_end(16000, kind='linear', scale='log', f_min=20))])
def test_round_trip(kw, tmp_path):
    old = make(**kw)
    new = from_pretrained(save_pretrained(old, tmp_path/'m'))
    C = 2 if kw.get('n_in')==2 else 1
    wav = AudioTensor(torch.rand(3, C, 4000)-0.5, sr=old.sr, lens=torch.tensor([4000,2500,900]))
    with torch.no_grad(): assert torch.equal(old(wav), new(wav))
    assert new.config()==old.config() and new.vocab==old.vocab and not new.training
    assert all(torch.equal(v, new.state_dict()[k]) for k,v in old.state_dict().items())

@pytest.mark.parametrize('arch', ['torchvision:mobilenet_v3_small', 'timm:mobilenetv3_small_050'])
def test_backbones(arch, tmp_path):
    old = make(arch)
    new = from_pretrained(save_pretrained(old, tmp_path/'m'))
    a,b = (c.predict(sound()).probs for c in (old,new))
    assert a.keys()==b.keys() and np.allclose(list(a.values()), list(b.values()), atol=1e-6)

text = st.text(st.characters(codec='utf-8'), max_size=12)

@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(vocab=st.lists(text, min_size=1, max_size=40, unique=True), n=st.integers(300, 20000),
    figures=st.dictionaries(text, st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), text)))
def test_any_names(vocab, n, figures, tmp_path):
    old = make(vocab=vocab)
    folder = save_pretrained(old, tmp_path/'m', figures)
    new = from_pretrained(folder)
    assert new.vocab==vocab and config(folder)['figures']==figures
    a,b = old.predict(sound(n)),new.predict(sound(n))
    assert a==b

def test_same_bytes(clf, saved, tmp_path):
    again = save_pretrained(clf, tmp_path/'digits', figures)
    assert all((again/o).read_bytes()==(saved/o).read_bytes() for o in files)
    assert (config(save_pretrained(from_pretrained(saved), tmp_path/'2'))['weights'])==config(saved)['weights']

def test_long_sound_repeats(clf, saved):
    wav,new = sound(5*sr),from_pretrained(saved)
    assert clf.predict(wav)==new.predict(wav)==new.predict(wav) and len(new.predict(wav).windows)>5

@pytest.mark.parametrize('dtype,eps', [(torch.float16,2e-3), (torch.bfloat16,2e-2)])
def test_half(clf, saved, tmp_path, dtype, eps):
    folder = save_pretrained(clf, tmp_path/'m', dtype=dtype)
    assert (folder/'model.safetensors').stat().st_size < 0.55*(saved/'model.safetensors').stat().st_size
    new = from_pretrained(folder)
    assert all(v.dtype in (torch.float32, torch.int64) for v in new.state_dict().values())
    assert np.allclose(list(new.predict(sound()).probs.values()), list(clf.predict(sound()).probs.values()), atol=eps)

def test_generator_untouched(saved, tmp_path):
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    save_pretrained(from_pretrained(saved), tmp_path/'m')
    assert torch.equal(torch.rand(3), want)

def test_fresh_process(saved, clf, tmp_path):
    "Same probabilities to 1e-6, and neither training half nor pickle: nothing else may be imported"
    fn = tmp_path/'a.wav'
    sound().save(fn)
    code = '''
import json, pickle, sys
def no(*args, **kwargs): raise AssertionError('unpickled')
from fastaudio_lite.export import from_pretrained
light = [o for o in ('fastaudio_lite.classifier','fastai','matplotlib') if o in sys.modules]
import fastaudio_lite.classifier, torch
pickle.load = pickle.loads = pickle.Unpickler = torch.load = no
said = from_pretrained(sys.argv[1]).predict(sys.argv[2])
heavy = 'fastai.learner fastai.vision fastai.data.core fastai.basics torchvision torchaudio librosa sklearn timm IPython'.split()
print(json.dumps([said.probs, light, [o for o in heavy if o in sys.modules]]))
'''
    res = subprocess.run([sys.executable, '-c', code, saved, fn], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode==0, res.stderr
    probs,light,heavy = json.loads(res.stdout)
    assert np.allclose([probs[o] for o in clf.vocab], [clf.predict(fn).probs[o] for o in clf.vocab], atol=1e-6)
    assert light==heavy==[]

def test_classifier_takes_folder(saved, clf):
    for o in (saved, str(saved)): assert Classifier(o).predict(sound())==clf.predict(sound())

# Folders of format 1
old_names = dict(stem='encoder.stem', proj='encoder.proj', layers='encoder.layers')

def as_format_1(folder, kind):
    "The folder as the first format had it"
    d,t = config(folder),weights(folder)
    def _old(k): return next((k.replace(f'model.{v}.', f'model.{o}.') for o,v in old_names.items() if k.startswith(f'model.{v}.')), k)
    d.update(format_version=1, kind=kind, config={k:v for k,v in d['config'].items() if kind=='classifier' or k!='arch'})
    return forge(folder, d, {_old(k):v for k,v in t.items()})

def test_format_1(copy, clf, tmp_path):
    "Old folders load, those that say `recogniser` too, and answer as ever"
    assert from_pretrained(as_format_1(copy, 'classifier')).predict(sound())==clf.predict(sound())
    tr = recognizer()
    old = as_format_1(save_pretrained(tr, tmp_path/'tr'), 'recogniser')
    assert 'model.stem.0.conv.weight' in weights(old) and 'arch' not in config(old)['config']
    new = from_pretrained(old, 'recognizer')
    with torch.no_grad(): assert torch.equal(new(sound()[None]), tr(sound()[None]))
    assert config(save_pretrained(new, tmp_path/'new'))['kind']=='recognizer'
    refused(_set(old, format_version=2), 'got kind')

# What is in the folder
def test_files(saved, clf):
    d = config(saved)
    assert sorted(o.name for o in saved.iterdir())==files
    assert (d['format'], d['format_version'], d['kind'])==('fastaudio_lite', 2, 'classifier')
    assert d['config']==json.loads(json.dumps(clf.config()))
    assert d['versions']['torch']==torch.__version__.partition('+')[0] and d['figures']['accuracy']==0.5
    assert d['weights']['n_params']==sum(o.numel() for o in clf.parameters())
    if os.name=='posix': assert oct(saved.stat().st_mode & 0o777)==oct(0o777 & ~_umask())

def _umask():
    res = os.umask(0)
    os.umask(res)
    return res

def test_card(saved, clf, tmp_path):
    card = (saved/'README.md').read_text(encoding='utf-8')
    for o in ('`zero`, `one`, `two`', '| accuracy | 0.5 |', 'AudioCNN', '8000 Hz', "from_pretrained('digits')", f"{sum(o.numel() for o in clf.parameters()):,}"): assert o in card
    assert 'Not measured' not in card
    assert 'Not measured' in (save_pretrained(clf, tmp_path/'m')/'README.md').read_text(encoding='utf-8')

def test_card_code_runs(saved, clf, tmp_path, monkeypatch, capsys):
    "The three lines of the card do as they say"
    code = (saved/'README.md').read_text(encoding='utf-8').partition('```python\n')[2].partition('```')[0]
    assert len(code.strip().splitlines())==3
    sound().save(tmp_path/'sound.wav')
    monkeypatch.chdir(shutil.copytree(saved, tmp_path/'digits').parent)
    exec(code, {})
    assert capsys.readouterr().out.strip()==clf.predict(sound()).label

def test_figures_of_numpy_and_torch(clf, tmp_path):
    folder = save_pretrained(clf, tmp_path/'m', dict(a=np.float32(0.5), b=torch.tensor(2), c=dict(d=[1,2])))
    assert config(folder)['figures']==dict(a=0.5, b=2, c=dict(d=[1,2]))

@pytest.mark.parametrize('figures', [dict(a=float('nan')), dict(a=object()), dict(a=b'1'), dict(a=np.float32('inf'))])
def test_bad_figures(clf, tmp_path, figures):
    with pytest.raises(PretrainedError, match='figures that json cannot hold'): save_pretrained(clf, tmp_path/'m', figures)
    assert not list(tmp_path.iterdir())

# Learners
def loaders(n=12):
    "Loaders of `n` sounds in two classes, and the sounds"
    from fastaudio_lite.data import AudioDataLoaders
    xs = [(sound(3000+100*i, i).numpy(), sr) for i in range(n)]
    dls = AudioDataLoaders.from_lists('.', xs, list('ab'*(n//2)), valid_pct=0.5, seed=0, bs=3, num_workers=0, front_end=FrontEnd(sr=sr, n_mels=32))
    return dls,xs

def test_own_network(tmp_path):
    "A network of one's own works in a `Classifier`, and cannot be saved"
    from fastaudio_lite.classifier import audio_learner
    learn = audio_learner(loaders()[0], nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)))
    assert Classifier(learn).predict(sound()).label in 'ab'
    with pytest.raises(PretrainedError, match=r'network of your own \(Sequential\).*arch=AudioCNN'): save_pretrained(learn, tmp_path/'m')
    assert not list(tmp_path.iterdir())

def test_learner(tmp_path):
    from fastaudio_lite.classifier import audio_learner
    dls,xs = loaders()
    learn = audio_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    folder = save_pretrained(learn, tmp_path/'m')
    figures,new = config(folder)['figures'],from_pretrained(folder)
    assert figures['epochs']==1 and figures['measured_on']=='validation set, 6 clips' and 0<=figures['accuracy']<=1
    assert new.predict(xs[0])==Classifier(learn).predict(xs[0])

@pytest.mark.parametrize('net', ['AudioCNN','Committee'])
def test_networks_own_settings(net, tmp_path):
    "A network of the table with other settings than usual is saved with them, and only them"
    from fastaudio_lite.classifier import audio_learner
    from fastaudio_lite.kinds import network
    own,more = (AudioCNN(2, chs=(4,8)),dict(chs=[4,8])) if net=='AudioCNN' else (network('classifier', 'Committee', n_out=2, n_mfcc=9),dict(n_mfcc=9))
    learn = audio_learner(loaders()[0], arch=own)
    folder = save_pretrained(learn, tmp_path/'m')
    new,old = from_pretrained(folder),Classifier(learn)
    assert config(folder)['config']['net']==more and new.model.config()==own.config()
    assert new.predict(sound())==old.predict(sound())
    learn.model = AudioCNN(2, 1, (4,9))
    learn.model.args['chs'] = [4,8]
    with pytest.raises(PretrainedError, match='its config does not describe'): save_pretrained(learn, tmp_path/'own')
    assert not (tmp_path/'own').exists()

# What cannot be saved
class Sub(Classifier): "Code that would be lost"

@pytest.mark.parametrize('obj', [nn.Linear(2, 2), 'model', None, AudioCNN(2)])
def test_no_kind(obj, tmp_path):
    with pytest.raises(PretrainedError, match='expected a learner of'): save_pretrained(obj, tmp_path/'m')

def test_subclass(clf, tmp_path):
    sub = Sub({k:getattr(clf, k) for k in 'front_end model vocab arch n_in multi dur'.split()})
    with pytest.raises(PretrainedError, match='got a Sub'): save_pretrained(sub, tmp_path/'m')

@pytest.mark.parametrize('change,text', [(dict(arch=None), 'network of your own'), (dict(arch='timm:hf_hub:a/b'), 'got the architecture'), (dict(vocab=['a','a','b']), 'come twice'),
    (dict(vocab=['a','b']), 'got weights for 3 classes'), (dict(dur=float('nan')), 'json cannot hold'), (dict(dur=-1), 'got dur=-1'), (dict(n_in=2), 'weights')])
def test_bad_object(change, text, tmp_path):
    c = make()
    for k,v in change.items(): setattr(c, k, v)
    with pytest.raises(PretrainedError, match=text): save_pretrained(c, tmp_path/'m')
    assert not list(tmp_path.iterdir())

def test_not_finite(tmp_path):
    c = make()
    c.model.head.bias.data[0] = float('nan')
    with pytest.raises(PretrainedError, match='in model.head.bias.*diverged'): save_pretrained(c, tmp_path/'m')
    c.model.head.bias.data[0] = 1e6
    with pytest.raises(PretrainedError, match='do not fit torch.float16'): save_pretrained(c, tmp_path/'m', dtype=torch.float16)
    with pytest.raises(PretrainedError, match='got dtype='): save_pretrained(c, tmp_path/'m', dtype=torch.int8)
    assert not list(tmp_path.iterdir())

# A kind of one's own
class Toy(Saved):
    "The least that a kind must have; `a` and `b` share memory"
    def __init__(self, n=3, big=1):
        super().__init__({})
        self.n,self.big,self.a,self.k = n,big,nn.Parameter(torch.randn(n)),nn.Buffer(torch.tensor(7))
        self.b = self.a
        self.register_buffer('table', torch.empty(big, dtype=torch.uint8), persistent=False)
    def config(self): return dict(n=self.n, big=self.big)
    @classmethod
    def from_config(cls, cfg): return cls(**cfg)

@pytest.fixture
def toy(monkeypatch): monkeypatch.setitem(export.kinds, 'toy', f'{__name__}:Toy')

def test_other_kind(toy, tmp_path, saved):
    old = Toy()
    folder = save_pretrained(old, tmp_path/'toy')
    new = from_pretrained(folder, kind='toy')
    assert type(new) is Toy and torch.equal(new.a, old.a) and new.k==7
    assert 'kind toy' in (folder/'README.md').read_text(encoding='utf-8')
    refused(folder, 'got a toy', kind='classifier')
    refused(saved, 'got a classifier', kind='toy')

@pytest.mark.parametrize('cfg,text', [(dict(n=3), 'lacks big'), (dict(n=3, big=1, x=1), 'no toy can be built'), (dict(n='3', big=1), 'no toy can be built'),
    (dict(n=10**12, big=1), 'a of shape (3,)'), (dict(n=3, big=2**40), 'needs 1099.5 GB'), ({}, 'lacks big'), (dict(n=2, big=1), 'expected (2,)')])
def test_other_kind_config(toy, tmp_path, cfg, text):
    folder = save_pretrained(Toy(), tmp_path/'toy')
    refused(forge(folder, {**config(folder), 'config':cfg}), text)

# Folders that are no models
def test_missing(saved, tmp_path):
    refused(tmp_path/'nothing', 'there is no such folder')
    refused('nothing', 'there is no such folder')
    refused(saved/'config.json', 'expected the folder that holds it')
    refused(tmp_path, 'without config.json')

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file(copy, name):
    (copy/name).unlink()
    refused(copy, f'without {name}')
    (copy/name).mkdir()
    refused(copy, f'without {name}')

@pytest.mark.parametrize('raw', [b'', b'{', b'\xff\xfe', b'{"a":'*5000, b'[' * 100000, b'1'*5000, b'nothing'])
def test_no_json(copy, raw):
    (copy/'config.json').write_bytes(raw)
    refused(copy, 'which is no json')

@pytest.mark.parametrize('d', [[], 1, None, 'x', {}, {'architectures':['Wav2Vec2']}, {'format':'other'}, {'format':['fastaudio_lite']}])
def test_json_of_another_kind(copy, d):
    (copy/'config.json').write_text(json.dumps(d))
    refused(copy, 'json of another kind')

def test_huge_config(copy):
    with open(copy/'config.json', 'r+b') as f: f.truncate(2**34)
    t = time.perf_counter()
    refused(copy, 'expected at most 17')
    assert time.perf_counter()-t < 1

@pytest.mark.parametrize('key,val,text', [('format_version', 3, 'upgrade'), ('format_version', '1', 'a whole number'), ('format_version', 0, 'a whole number'), ('format_version', None, 'a whole number'),
    ('kind', 'os:system', 'expected one of classifier'), ('kind', 'Classifier', 'expected one of'), ('kind', ['classifier'], 'expected one of'), ('kind', None, 'expected one of'),
    ('config', [], 'expected a dict'), ('config', None, 'expected a dict'), ('config', {}, 'the config lacks'), ('extra', 1, 'unknown key extra')])
def test_about(copy, key, val, text): refused(_set(copy, **{key:val}), text)

def _set(folder, **kw):
    (folder/'config.json').write_text(json.dumps({**config(folder), **kw}))
    return folder

@pytest.mark.parametrize('key', 'kind config figures weights versions'.split())
def test_about_lacks(copy, key):
    d = config(copy)
    del d[key]
    (copy/'config.json').write_text(json.dumps(d))
    refused(copy, f'lacks {key}')

@pytest.mark.parametrize('w', [None, [], {}, 'x', {'sha256':1}])
def test_about_weights(copy, w): refused(_set(copy, weights=w), 'changed after saving')

def test_newer_version_says_whose(copy): refused(_set(copy, format_version=7, versions=dict(fastaudio_lite='3.1')), '(fastaudio_lite 3.1)')

# Configs, with sums that fit
def test_each_key_is_needed(copy):
    d = config(copy)
    for k in d['config']: refused(forge(copy, {**d, 'config':{o:v for o,v in d['config'].items() if o!=k}}), f'lacks {k}')
    fe = d['config']['front_end']
    for k in fe:
        cfg = {**d['config'], 'front_end':{o:v for o,v in fe.items() if o!=k}}
        refused(forge(copy, {**d, 'config':cfg}), f'front_end.{k}')

vals = [None, True, 0, -1, 1.5, 10**9, 10**30, 1e300, '', 'x', [], [1], ['a']*3, {}, {'a':1}, 'os:system', '../x', 'timm:hf_hub:a/b', 'torchvision:nothing', 'timm:vit_giant_patch14_dinov2']

@pytest.mark.parametrize('key', 'arch n_in vocab dur multi front_end'.split())
def test_absurd_values(copy, key):
    d = config(copy)
    for v in vals:
        forge(copy, {**d, 'config':{**d['config'], key:v}})
        try: c = from_pretrained(copy)
        except PretrainedError as e: assert len(str(e))<600
        else: assert (key,v) in [('dur',1.5), ('multi',True)] and c.config()[key]==v

def test_absurd_front_end(copy):
    d,t = config(copy),time.perf_counter()
    fe = d['config']['front_end']
    for key in fe:
        for v in [None, True, -1, 1.5, 10**9, 1e300, 'x', [1]]:
            forge(copy, {**d, 'config':{**d['config'], 'front_end':{**fe, key:v}}})
            try: c = from_pretrained(copy)
            except PretrainedError as e: assert len(str(e))<600
            else: assert c.front_end.config()[key]==v
    assert time.perf_counter()-t < 20

def _absurd_recognizers(m):
    "Settings of the network of a recognizer that no training makes"
    yield dict(chs=[8]*64, strides=[1]*64)
    for k,vs in dict(n_layers=[100_000, 0, -1, 1.5, '3', [3], None], n_hidden=[10**9, 1.5, '16', [16], None, 0], n_out=[10**9, 1, None, '28'],
        n_mels=[10**9, 1, None, [16]], n_sounds=[10**9, -1, 1.5, '3'], p=[2, -1, 'x', None, [.1]],
        chs=[[8]*10**6, [], [[8]], ['8'], [1.5], 8, '16', None, {}], strides=[[1]*10**6, [], [[2]], ['2'], [1.5,2], [.5,1], [0,1], 2, None, [2,2,2]]).items():
        for v in vs: yield {k:v}
    for k in m: yield {k:'lost'}

def test_absurd_recognizer(tmp_path):
    "Each is refused in a sentence, before anything large is built"
    folder = save_pretrained(recognizer(), tmp_path/'m', {})
    d = config(folder)
    for o in _absurd_recognizers(d['config']['model']):
        cfg = {k:v for k,v in {**d['config']['model'], **o}.items() if v!='lost'}
        forge(folder, {**d, 'config':{**d['config'], 'model':cfg}})
        t = time.process_time()
        with pytest.raises(PretrainedError) as e: from_pretrained(folder)
        assert len(str(e.value))<600 and time.process_time()-t < 2, o

@pytest.mark.parametrize('fe', [dict(hop=1), dict(hop=1.5), dict(sr='8000'), dict(n_fft=1)])
def test_absurd_recognizer_front_end(fe, tmp_path):
    folder = save_pretrained(recognizer(), tmp_path/'m', {})
    d = config(folder)
    d['config']['front_end'].update(fe)
    with pytest.raises(PretrainedError): from_pretrained(forge(folder, d))

def test_no_attribute_is_set(copy):
    d = config(copy)
    for k in ('forward', 'predict', '__class__', 'training', 'model'): refused(forge(copy, {**d, 'config':{**d['config'], k:'x'}}), f'unknown key {k}')

@pytest.mark.parametrize('fe', [dict(n_fft=2**34), dict(n_fft=2**16, win=2**16, n_mels=2**15), dict(kind='linear', n_fft=2**34),
    dict(hop=2**40), dict(sr=10**9)])
def test_front_end_too_large(copy, fe):
    d,t = config(copy),time.perf_counter()
    refused(forge(copy, {**d, 'config':{**d['config'], 'front_end':{**d['config']['front_end'], **fe}}}), 'front_end')
    assert time.perf_counter()-t < 2

@pytest.mark.parametrize('arch', ['timm:vit_giant_patch14_dinov2', 'torchvision:regnet_y_128gf'])
@pytest.mark.filterwarnings('ignore')
def test_giant_is_not_built(copy, arch):
    import resource
    d = config(copy)
    forge(copy, {**d, 'config':{**d['config'], 'arch':arch}})
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copy, 'weights file lacks')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-used < 500_000

def test_many_names(copy):
    d = config(copy)
    refused(forge(copy, {**d, 'config':{**d['config'], 'vocab':[str(i) for i in range(200_000)]}}), 'got weights for 3 classes')

@pytest.mark.parametrize('vocab', [['zero','one'], ['zero','one','two','three']])
def test_vocab_length(copy, vocab):
    d = config(copy)
    d['config']['vocab'] = vocab
    (copy/'config.json').write_text(json.dumps(d))
    refused(copy, f'got weights for 3 classes (model.head.weight), expected {len(vocab)}')

def test_vocab_order(copy):
    d = config(copy)
    d['config']['vocab'].reverse()
    (copy/'config.json').write_text(json.dumps(d))
    refused(copy, 'config that was changed after saving')

# Weights
@pytest.mark.parametrize('text,change', [
    ('lacks model.head.bias', lambda t: t.pop('model.head.bias')),
    ('more than expected: more', lambda t: t.update(more=torch.zeros(1))),
    ('lacks', lambda t: t.clear()),
    ('of shape (1, 3, 256)', lambda t: t.update({'model.head.weight':t['model.head.weight'][None]})),
    ('of shape (3, 255)', lambda t: t.update({'model.head.weight':t['model.head.weight'][:,1:].contiguous()})),
    ('type I64', lambda t: t.update({'model.head.weight':t['model.head.weight'].long()})),
    ('type F32', lambda t: t.update({k:v.float() for k,v in t.items()}))])
def test_other_tensors(copy, text, change):
    t = weights(copy)
    change(t)
    refused(forge(copy, tensors=t), text)

def test_other_models_weights(copy, tmp_path):
    other = save_pretrained(make(seed=1), tmp_path/'other')
    shutil.copy(other/'model.safetensors', copy)
    refused(copy, 'contents that were changed after saving')

@pytest.mark.parametrize('cut', [0, 1, 7, 8, 100, -1, -1000])
def test_truncated(copy, cut):
    fn = copy/'model.safetensors'
    fn.write_bytes(fn.read_bytes()[:cut])
    refused(copy, 'cut off, damaged or no safetensors file')

def test_longer(copy):
    with open(copy/'model.safetensors', 'ab') as f: f.write(b'x')
    refused(copy, 'cut off, damaged')

def _header(d, n=None):
    raw = d if isinstance(d, bytes) else json.dumps(d).encode()
    return (len(raw) if n is None else n).to_bytes(8, 'little')+raw

def _t(shape, *at, dtype='F32'): return dict(dtype=dtype, shape=shape, data_offsets=at)

no_tensors = [_header({}, n) for n in (2**63, 2**64-1, 2**40, 0)] + [_header(o) for o in (b'nothing', [], b'[' * 10000)]
bad_tensors = [_t([2**40], 0, 2**42), _t([2**32,2**32,2**32], 0, 4), _t([1], 4, 0), _t([-1], 0, 4), _t([1], 0, 4, dtype='X9'),
    _t([1], 2**63, 2**63+4)]

@pytest.mark.parametrize('raw', [*no_tensors, *(_header({'a':o})+b'abcd' for o in bad_tensors),
    _header({'a':_t([1], 0, 4), 'b':_t([1], 0, 4)})+b'abcd', pickle.dumps([1,2,3])])
def test_hostile_header(copy, raw):
    (copy/'model.safetensors').write_bytes(raw)
    t = time.perf_counter()
    refused(copy, 'cut off, damaged or no safetensors file')
    assert time.perf_counter()-t < 1

@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_any_byte(saved, tmp_path, at, x):
    "No byte of the weights or the config can change unseen, and nothing but a PretrainedError comes of it"
    bad = tmp_path/'bad'
    for name in ('model.safetensors', 'config.json'):
        shutil.copytree(saved, bad, dirs_exist_ok=True)
        raw = bytearray((bad/name).read_bytes())
        raw[at%len(raw) if at%2 else at%min(len(raw), 4000)] ^= x
        (bad/name).write_bytes(raw)
        try: c = from_pretrained(bad)
        except PretrainedError: continue
        assert name=='config.json' and c.config()==config(saved)['config']

def test_pickle_does_not_run(copy, tmp_path):
    class Gift:
        def __reduce__(self): return (tmp_path/'ran').touch, ()
    (copy/'model.safetensors').write_bytes(pickle.dumps(Gift()))
    torch.save(Gift(), copy/'pytorch_model.bin')
    refused(copy, 'no safetensors file')
    assert not (tmp_path/'ran').exists()

# Writing
def test_replaces_its_own(clf, copy):
    save_pretrained(make(vocab=['a','b']), copy)
    assert from_pretrained(copy).vocab==['a','b'] and os.listdir(copy.parent)==['copy']

def test_new_places(clf, tmp_path, monkeypatch):
    (tmp_path/'empty').mkdir()
    for o in (tmp_path/'a'/'b'/'c', tmp_path/'empty', str(tmp_path/'mit leerem raum, é')): assert from_pretrained(save_pretrained(clf, o)).vocab==clf.vocab
    monkeypatch.chdir(tmp_path)
    assert save_pretrained(clf, 'here')==tmp_path.resolve()/'here'
    (tmp_path/'link').symlink_to(tmp_path/'here')
    assert save_pretrained(clf, 'link')==tmp_path.resolve()/'here' and (tmp_path/'link').is_symlink()

@pytest.mark.parametrize('what', [{'notes.txt':''}, {'config.json':'{}'}, {'README.md':'my project'}, {'config.json':'{'}, {'model.safetensors':'x'}, {'.git':None}])
def test_others_folders_are_safe(clf, tmp_path, what):
    for k,v in what.items(): (tmp_path/k).write_text(v) if v is not None else (tmp_path/k).mkdir()
    with pytest.raises(PretrainedError, match='which holds'): save_pretrained(clf, tmp_path)
    assert sorted(os.listdir(tmp_path))==sorted(what)
    assert all((tmp_path/k).read_text()==v for k,v in what.items() if v is not None)

def test_own_folder_with_notes(clf, copy):
    (copy/'notes.txt').write_text('mine')
    with pytest.raises(PretrainedError, match='which holds notes.txt'): save_pretrained(clf, copy)
    assert (copy/'notes.txt').read_text()=='mine'

def test_file_in_the_way(clf, saved, tmp_path):
    (tmp_path/'f').write_text('x')
    with pytest.raises(PretrainedError, match='got the file'): save_pretrained(clf, tmp_path/'f')
    with pytest.raises(PretrainedError, match='cannot write|got the file'): save_pretrained(clf, tmp_path/'f'/'m')
    assert (tmp_path/'f').read_text()=='x'

@pytest.mark.parametrize('name', files)
@pytest.mark.parametrize('err', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()])
def test_all_or_nothing(saved, copy, monkeypatch, name, err):
    "Whatever fails at whichever file, the old model stays and nothing else is there"
    real = {o:getattr(Path, o) for o in ('write_text', 'write_bytes')}
    def failing(which):
        def _inner(self, data, *args, **kwargs):
            if self.name!=name: return real[which](self, data, *args, **kwargs)
            real[which](self, data[:len(data)//2], *args, **kwargs)
            raise err
        return _inner
    for o in real: monkeypatch.setattr(Path, o, failing(o))
    for folder in (copy, copy.parent/'new'):
        with pytest.raises((KeyboardInterrupt,PretrainedError)): save_pretrained(make(vocab=['a','b']), folder)
    monkeypatch.undo()
    assert os.listdir(copy.parent)==['copy']
    assert all((copy/o).read_bytes()==(saved/o).read_bytes() for o in files)

@pytest.mark.parametrize('nth', [1,2])
def test_rename_fails(saved, copy, monkeypatch, nth):
    "Also if the very last step fails, the old model is back"
    real,calls = os.rename,[]
    def rename(a, b):
        calls.append(a)
        if len(calls)==nth: raise KeyboardInterrupt
        real(a, b)
    monkeypatch.setattr(export.os, 'rename', rename)
    with pytest.raises(KeyboardInterrupt): save_pretrained(make(vocab=['a','b']), copy)
    assert os.listdir(copy.parent)==['copy'] and (copy/'config.json').read_bytes()==(saved/'config.json').read_bytes()

def _killed_between(copy):
    "As a process leaves it that is killed between the two names of a model that it replaces"
    tmp = copy.with_name(f'.{copy.name}-saving-abcd1234')
    tmp.mkdir()
    (tmp/'new').mkdir()
    (tmp/'lock').touch()
    return copy.rename(tmp/'old').parent

def test_killed_between_names(clf, copy):
    "The old model comes back, whoever looks for it, and nothing else is left"
    for f in (from_pretrained, lambda o: save_pretrained(clf, o)):
        _killed_between(copy)
        f(copy)
        assert os.listdir(copy.parent)==['copy'] and from_pretrained(copy).vocab==clf.vocab

def test_killed_and_not_to_be_brought_back(copy, monkeypatch):
    "Where the old model cannot be moved, the error says where it lies"
    tmp = _killed_between(copy)
    def no(*args): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(export.os, 'rename', no)
    refused(copy, f"{tmp/'old'} holds what was to be replaced there")

def test_stale_copies_go(clf, copy):
    "What a killed process left goes with the next writing; what another one holds, or is somebody's own, stays"
    stale,held,own = (copy.with_name(f'.copy-saving-{o}') for o in ('aaaaaaaa','bbbbbbbb','mine'))
    for o in (stale, held, own):
        (o/'new').mkdir(parents=True)
        (o/'lock').touch()
    with export.alone(held/'lock'): save_pretrained(clf, copy)
    assert sorted(os.listdir(copy.parent))==['.copy-saving-bbbbbbbb','.copy-saving-mine','copy']

def test_two_writers(clf, copy, monkeypatch):
    "Another process that is faster by a moment is no error: the last one's model stays"
    real,other = os.rename,make(vocab=['a','b'])
    def rename(a, b):
        real(a, b)
        if Path(b).name!='old': return
        monkeypatch.undo()
        save_pretrained(other, copy)
    monkeypatch.setattr(export.os, 'rename', rename)
    save_pretrained(clf, copy)
    assert from_pretrained(copy).vocab==clf.vocab and os.listdir(copy.parent)==['copy']

@pytest.mark.parametrize('where', ['_header','_check_sums','_finite_weight'])
def test_reader_beside_writer(clf, copy, monkeypatch, where):
    "A model that is replaced while it is read is read again, and never half the one and half the other"
    real,other = getattr(export, where),make(seed=1)
    def _inner(*args):
        monkeypatch.setattr(export, where, real)
        save_pretrained(other, copy)
        return real(*args)
    monkeypatch.setattr(export, where, _inner)
    assert from_pretrained(copy).predict(sound())==other.predict(sound())

@pytest.mark.skipif(os.name!='posix', reason='limits of a process are set the posix way')
def test_disk_full(copy, tmp_path):
    "A limit on the size of files is as near to a full disk as a test gets"
    import resource
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.raises(PretrainedError, match='cannot write .*nothing was changed'): save_pretrained(make(vocab=['a','b']), copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert from_pretrained(copy).vocab==['zero','one','two'] and os.listdir(tmp_path)==['copy']

# ONNX
try: import onnx, onnxruntime
except ImportError: onnx = None
needs_onnx = pytest.mark.skipif(onnx is None or not find_spec('onnxscript'), reason='the extra onnx is not installed')

@torch.no_grad()
def lively(c):
    "The classifier `c` with its last layer scaled so that no probability is near 0 or 1 for noise"
    z = c.model(c.front_end(batch(8, c.n_in//(c.front_end.deltas+1), 4000, c.sr))).as_subclass(torch.Tensor)
    head = [o for o in c.modules() if isinstance(o, nn.Linear)][-1]
    k = 1/z.std(0).mean()
    head.weight.mul_(k)
    head.bias.sub_(z.mean(0)).mul_(k)
    return c

def batch(B, C, T, sr):
    "Noise that grows, of falling lengths"
    wav = torch.randn(B, C, T)*torch.logspace(-3, 0, T)
    return AudioTensor(wav, sr=sr, lens=torch.tensor([max(T//(i+1), 1) for i in range(B)]))

def recognizer(n=40, **kw):
    "A small recognizer, not trained"
    from fastaudio_lite.asr.ctc import CTCModel
    from fastaudio_lite.text import Tokens
    from fastaudio_lite.asr.transcribe import Transcriber
    torch.manual_seed(0)
    tokens = Tokens.letters(['so ein text', 'é'])
    model = CTCModel(len(tokens), n, (4,8), (2,2), 12, 2, n_sounds=5)
    return Transcriber(dict(tokens=tokens, model=model, front_end=FrontEnd(sr, n_mels=n, norm='bin', **kw)))

fe_kw = st.fixed_dictionaries(dict(kind=st.sampled_from(['mel','mfcc','linear']), scale=st.sampled_from(['db','log','pcen','none']),
    norm=st.sampled_from(['data','clip','bin',None]), deltas=st.integers(0, 2), center=st.booleans(), power=st.sampled_from([1.,2.]),
    win=st.integers(150, 256), n_fft=st.integers(256, 300), hop=st.integers(60, 300), top_db=st.sampled_from([None,60.])))

@settings(max_examples=40, deadline=None)
@given(fe_kw, st.integers(1, 3), st.integers(1, 2), st.integers(1, 4000))
def test_graph_front_end(kw, B, C, T):
    "The front end of the graph is that of the model, whatever its settings"
    fe,wav = FrontEnd(sr, n_mels=24, **kw),batch(B, C, T, sr)
    want,got = fe(wav),export._as_graph(fe)(wav)
    assert torch.equal(got.lens, want.lens) and got.shape==want.shape and type(fe) is FrontEnd
    tol = 1e-2 if kw['norm'] in ('clip','bin') else 2e-3 # A clip of one sample has next to no spread to divide by
    assert (got-want).abs().max() < tol*max(want.abs().max().item(), 1)

class Features(nn.Module):
    outputs = 'x','n'
    def __init__(self, fe):
        super().__init__()
        self.front_end = fe

    def forward(self, wav, lens): return self.front_end(wav, lens)

@needs_onnx
@pytest.mark.parametrize('kw', [dict(), dict(scale='pcen', norm='bin', center=False), dict(kind='mfcc', deltas=2, norm='clip', center=False),
    dict(kind='linear', scale='log', power=1., norm=None, win=180, n_fft=260)])
def test_onnx_front_end(kw):
    "The one forward, traced: the same shapes and numbers for any batch and any length"
    fe = FrontEnd(sr, n_mels=24, **kw)
    tol = 1e-3 if kw.get('scale')=='log' else 1e-5 # The logarithm of next to nothing magnifies rounding
    run = onnxruntime.InferenceSession(export._trace(export._Graph(Features(fe)), sr, 2).SerializeToString()).run
    for B,T in (1,1),(3,255),(2,9001):
        wav = batch(B, 2, T, sr)
        want,(got,n) = fe(wav),run(None, dict(wav=wav.numpy(), lens=wav.lens.numpy()))
        assert got.shape==want.shape and n.tolist()==want.lens.tolist()
        if T>1000: assert np.abs(got-want.numpy()).max() < tol*max(want.abs().max().item(), 1)

@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    "A classifier of two channels and a recognizer, with their files"
    path,fe = tmp_path_factory.mktemp('onnx'),front_end(kind='mfcc', deltas=2, n_mels=32, norm='clip')
    made = dict(clf=lively(make(vocab=['só', '一', 'a|b'], n_in=6, multi=True, front_end=fe)), asr=recognizer())
    return {k:(o, export.export_onnx(o, path/f'{k}.onnx')) for k,o in made.items()}

@needs_onnx
@pytest.mark.parametrize('name', ['clf', 'asr'])
def test_onnx_answers(exported, name):
    "Any batch, any length: the model's answers"
    obj,fn = exported[name]
    run,C = onnxruntime.InferenceSession(fn).run,2 if name=='clf' else 1
    for B,T in (1,4000),(1,1),(4,300),(3,20_011),(7,801):
        wav = batch(B, C, T, obj.sr)
        with torch.no_grad(): want = obj(wav)
        got,*steps = run(None, dict(wav=wav.numpy(), lens=wav.lens.numpy()))
        assert np.abs(np.exp(got)-np.exp(want.numpy())).max() < 1e-5
        if steps: assert steps[0].tolist()==want.lens.tolist()
        elif T>=4000: assert 0.01 < got.mean() < 0.99

@needs_onnx
def test_onnx_padding(exported):
    "The answer for a clip is the same alone, in a batch, and with `lens` beyond the end"
    run,wav = onnxruntime.InferenceSession(exported['clf'][1]).run,batch(3, 2, 5000, sr)
    both, = run(None, dict(wav=wav.numpy(), lens=wav.lens.numpy()))
    for w,n,p in zip(wav.numpy(), wav.lens.tolist(), both):
        assert np.allclose(run(None, dict(wav=w[None,:,:n], lens=np.array([n])))[0], p, atol=1e-5)
        assert np.allclose(run(None, dict(wav=w[None,:,:n], lens=np.array([n+10**9])))[0], p, atol=1e-5)

@needs_onnx
def test_onnx_facts(exported):
    "All that a user needs is in the file, and nothing of the machine that wrote it"
    for name,(obj,fn) in exported.items():
        raw = fn.read_bytes()
        onnx.checker.check_model(onnx.load_from_string(raw))
        meta = onnxruntime.InferenceSession(raw).get_modelmeta().custom_metadata_map
        d = {k:json.loads(v) for k,v in meta.items()}
        assert (d['format'], d['format_version'], d['sr'], d['channels'])==('fastaudio_lite', 2, obj.sr, 2 if name=='clf' else 1)
        assert d['vocab']==(obj.tokens.vocab if name=='asr' else obj.vocab)
        if name=='asr': assert d['kind']=='recognizer' and d['step_dur']==obj.step
        else: assert (d['kind'], d['multi'], d['win'], d['hop'])==('classifier', obj.multi, 4800, 2400)
        for o in (Path(export.__file__).parents[1], Path(torch.__file__).parents[1], fn.parent): assert str(o).encode() not in raw
        assert b'stack_trace' not in raw

_apart = """
import json, sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = {k:json.loads(v) for k,v in session.get_modelmeta().custom_metadata_map.items()}
x = np.load(sys.argv[2])
lp,steps = session.run(None, dict(wav=x[None], lens=np.array([x.shape[-1]])))
best = lp[0,:steps[0]].argmax(-1)
ids = [int(k) for i,k in enumerate(best) if k and (i==0 or k!=best[i-1])]
heavy = [o for o in ('torch','fastaudio_lite','fastai','onnx') if o in sys.modules]
print(json.dumps([' '.join(''.join(about['vocab'][k] for k in ids).split()), heavy]))
"""

@needs_onnx
def test_onnx_fresh_process(exported, tmp_path):
    "numpy and onnxruntime are enough to write down what the recognizer writes"
    tr,fn = exported['asr']
    wav = sound(8000)
    np.save(tmp_path/'x.npy', wav.numpy())
    res = subprocess.run([sys.executable, '-c', _apart, fn, tmp_path/'x.npy'], capture_output=True, text=True, cwd=tmp_path, encoding='utf-8')
    assert res.returncode==0, res.stderr
    assert json.loads(res.stdout)==[tr.transcribe(wav).text, []] and not res.stderr

@needs_onnx
def test_onnx_every_output(exported, monkeypatch, tmp_path):
    "Steps that the graph counts otherwise are found too"
    obj,fn = exported['asr']
    raw = fn.read_bytes()
    assert export._onnx_gap(obj, raw, 1)<1e-5
    class Late(nn.Module):
        def forward(self, wav, lens=None):
            res = type(obj).forward(obj, wav, lens)
            res.lens = res.lens+1
            return res
    late = Late()
    late.sr,late.outputs = obj.sr,obj.outputs
    assert export._onnx_gap(late, raw, 1)==1

def test_onnx_lstms():
    "Only what the operation can hold is exchanged"
    plain = dict(batch_first=True)
    for kw in {},dict(num_layers=2),dict(bidirectional=True),dict(proj_size=2): assert not export._plain_lstm(nn.LSTM(4, 4, **(plain|kw if kw else kw)))
    assert export._plain_lstm(nn.LSTM(4, 4, **plain))

@needs_onnx
def test_onnx_leaves_model(exported, monkeypatch, tmp_path):
    "The model, the random generator and a file that is there are as before, also where the trial fails"
    obj,fn = exported['clf']
    raw,before,rng = fn.read_bytes(),{k:v.clone() for k,v in obj.state_dict().items()},torch.get_rng_state()
    monkeypatch.setattr(export, '_trace', lambda *args: onnx.load_from_string(raw))
    monkeypatch.setattr(export, '_onnx_gap', lambda *args: 0.5)
    with pytest.raises(PretrainedError, match='differ from the model.*by 0.5.*nothing was written'): export.export_onnx(obj, fn)
    assert fn.read_bytes()==raw and torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k,v in obj.state_dict().items())
    monkeypatch.setattr(export, '_onnx_gap', lambda *args: 0.)
    def failing(self, data):
        real(self, data[:100])
        raise OSError(errno.ENOSPC, 'No space left on device')
    real = Path.write_bytes
    monkeypatch.setattr(Path, 'write_bytes', failing)
    with pytest.raises(PretrainedError, match='cannot write .*No space left'): export.export_onnx(obj, tmp_path/'new'/'x.onnx')
    monkeypatch.undo()
    assert not list(tmp_path.rglob('*.onnx')) and not list(tmp_path.rglob('*.tmp')) and fn.read_bytes()==raw

@needs_onnx
def test_onnx_own_network(tmp_path):
    "Code does not travel in a folder, but its sums travel in a graph, if they are always the same ones"
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    own = Classifier(dict(make().config(), arch=None, model=net, front_end=FrontEnd(sr=sr, n_mels=32)))
    fn = export.export_onnx(lively(own), tmp_path/'own.onnx')
    assert export._onnx_gap(own, fn.read_bytes(), 1) < 1e-5
    class Whim(nn.Module):
        def forward(self, x): return x.mean((2,3)).expand(-1, 3)*(2 if x.sum()>0 else 1)
    own.model = Whim()
    with pytest.raises(PretrainedError, match='got a Whim that cannot be written as ONNX') as e: export.export_onnx(own, tmp_path/'whim.onnx')
    assert len(str(e.value))<600 and os.listdir(tmp_path)==['own.onnx']
    tr = recognizer()
    tr.model = net
    with pytest.raises(PretrainedError, match='expected CTCModel'): export.export_onnx(tr, tmp_path/'tr.onnx')

@pytest.mark.parametrize('fn', ['x', 'x.pt', 'x.onnx.gz', '.'])
def test_onnx_name(fn, tmp_path):
    (tmp_path/'d.onnx').mkdir()
    for o in (tmp_path/fn, tmp_path/'d.onnx'):
        with pytest.raises(PretrainedError, match='expected a file that ends in .onnx'): export.export_onnx(make(), o)

@needs_onnx
@pytest.mark.parametrize('obj,text', [(nn.Linear(2, 2), 'expected a learner'), (Path('nothing'), 'expected a folder')])
def test_onnx_no_model(obj, text, tmp_path):
    with pytest.raises(PretrainedError, match=text): export.export_onnx(obj, tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())

def test_onnx_not_installed(monkeypatch, tmp_path):
    for o in ('onnx','onnxruntime','onnxscript'): monkeypatch.setitem(sys.modules, o, None)
    with pytest.raises(PretrainedError, match='pip install onnx onnxruntime onnxscript'): export.export_onnx(make(), tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())

# The Hugging Face Hub
class Hub(BaseHTTPRequestHandler):
    "What of the Hub's protocol a download needs, for a few repositories"
    def do_GET(self):
        if '/resolve/' not in self.path: return self.refuse(404, '')
        srv,(_,owner,name,_,rev,fn) = self.server,self.path.partition('?')[0].split('/', 5)
        srv.asked.append((self.command, f'{owner}/{name}', rev, fn))
        repo = srv.repos.get(f'{owner}/{name}', 'RepoNotFound')
        if repo=='RepoNotFound': return self.refuse(401, 'RepoNotFound')
        if repo=='GatedRepo': return self.refuse(403, repo)
        if repo=='broken': return self.refuse(500, '')
        if rev not in ('main', 'v1', commit): return self.refuse(404, 'RevisionNotFound')
        if not (repo/fn).is_file(): return self.refuse(404, 'EntryNotFound')
        self.answer(200, (repo/fn).read_bytes(), {'ETag':f'"{hashlib.sha256((repo/fn).read_bytes()).hexdigest()}"'})

    do_HEAD = do_GET
    def refuse(self, code, why): self.answer(code, b'', {'X-Error-Code':why} if why else {})
    def log_message(self, *args): pass

    def answer(self, code, raw, headers):
        self.send_response(code)
        for k,v in {'X-Repo-Commit':commit, 'Content-Length':len(raw), **headers}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command=='GET': self.wfile.write(raw)

commit = 'c0ffee'*6 + 'abcd'

@pytest.fixture
def hub(saved, tmp_path):
    "A server on this machine: repositories, and a list of what was asked for"
    srv = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    big = shutil.copytree(saved, tmp_path/'repos'/'big')
    for o in ('pytorch_model.bin', 'modeling.py', 'sub/config.json'):
        (big/o).parent.mkdir(exist_ok=True)
        (big/o).write_text('raise SystemExit')
    srv.repos,srv.asked = {'me/digits':big, 'me/gated':'GatedRepo', 'me/broken':'broken'},[]
    for k in ('other','empty','damaged','bare'): srv.repos[f'me/{k}'] = shutil.copytree(saved, tmp_path/'repos'/k)
    _set(srv.repos['me/other'], format='wav2vec2')
    (srv.repos['me/empty']/'config.json').unlink()
    (srv.repos['me/damaged']/'model.safetensors').write_bytes(pickle.dumps([1]))
    (srv.repos['me/bare']/'README.md').unlink()
    srv.repos['me/asr'] = save_pretrained(recognizer(), tmp_path/'repos'/'asr')
    Thread(target=srv.serve_forever, daemon=True).start()
    yield srv
    srv.shutdown()
    srv.server_close()

_load = """
import json, os, sys
from fastaudio_lite.audio import AudioTensor
from fastaudio_lite.classifier import Classifier
from fastaudio_lite.export import PretrainedError, from_pretrained
import torch
wav = AudioTensor(torch.linspace(-1, 1, 4000)[None], sr=8000)
for name,kind,env in json.loads(sys.argv[1]):
    os.environ.update(env)
    try: print('label', (from_pretrained(name, kind) if kind else Classifier.from_pretrained(name)).predict(wav).label)
    except PretrainedError as e: print(e)
"""

def fetch(hub, tmp_path, *asks, code=_load, **env):
    "What a fresh process prints that runs `code` for `asks`, with the server of `hub` as its Hub"
    asks = [(o, None, {}) if isinstance(o, str) else o for o in asks]
    url = f'http://127.0.0.1:{hub.server_port}' if hub else 'http://127.0.0.1:9'
    env = {**os.environ, 'HF_ENDPOINT':url, 'HF_HOME':str(tmp_path/'hf'), 'HF_HUB_OFFLINE':'0', 'FASTAUDIO_LITE_OFFLINE':'no',
        'NO_PROXY':'127.0.0.1', 'HF_HUB_DISABLE_TELEMETRY':'1', **env}
    (tmp_path/'cwd').mkdir(exist_ok=True)
    res = subprocess.run([sys.executable, '-c', code, json.dumps(asks)], capture_output=True, text=True, cwd=tmp_path/'cwd', env=env)
    assert res.returncode==0, res.stderr
    return res.stdout.splitlines()

def test_hub(hub, clf, tmp_path):
    "By name, of a commit, from the cache without a network; three files and nothing else"
    want = 'label ' + clf.predict(AudioTensor(torch.linspace(-1, 1, 4000)[None], sr=sr)).label
    off = dict(FASTAUDIO_LITE_OFFLINE='yes')
    got = fetch(hub, tmp_path, 'me/digits', 'me/digits@v1', f'me/digits@{commit}', 'me/bare', ['me/digits', 'classifier', off], ['me/gated', None, off])
    assert got[:5]==[want]*5 and 'the setting offline is on' in got[5] and len(got)==6
    assert {o[3] for o in hub.asked}==set(files)
    n = len(hub.asked)
    got = fetch(None, tmp_path, f'me/digits@{commit}', 'me/other', 'me/digits')
    assert got[0]==got[2]==want and 'does not answer' in got[1] and len(hub.asked)==n

def test_hub_refusals(hub, saved, tmp_path):
    "One sentence for each reason; of what is not ours no weights come, nor of another kind. A folder of that name wins"
    shutil.copytree(saved, tmp_path/'cwd'/'me'/'here')
    rows = {'me/nothing':'nor a public repository', 'nobody/digits':'nor a public repository', 'me/gated':'its owner opens on request',
        'me/digits@v9':'a revision that is not there', 'me/other':'json of another kind', 'me/empty':'without config.json',
        'me/damaged':'no safetensors file', 'a--b/c..d':'allows: check it', 'me/broken':'me/broken'}
    got = fetch(hub, tmp_path, *rows, ['me/digits', 'recognizer', {}], 'me/here')
    assert len(got)==len(rows)+2
    for o,(k,text) in zip(got, rows.items()): assert text in o and len(o)<500, (k, o)
    assert 'got a classifier' in got[-2] and got[-1].startswith('label') and not [o for o in hub.asked if o[1]=='me/here']
    refused(Path('me/digits'), 'there is no such folder')
    assert {o[1] for o in hub.asked if o[3]=='model.safetensors'}=={'me/damaged'}

_commands = """
import sys
from fastaudio_lite.asr.transcribe import Transcriber
from fastaudio_lite.cli import main
print(Transcriber.from_pretrained('me/asr').sr)
codes = [main([*o, 'x.wav', '--model', m]) for o,m in ((['predict'],'me/digits@v1'), (['transcribe'],'me/asr'), (['predict'],'me/gated'))]
print(codes)
"""

def test_hub_commands(hub, clf, tmp_path):
    "`predict` and `transcribe` take the name of a model too"
    (tmp_path/'cwd').mkdir()
    sound().save(tmp_path/'cwd'/'x.wav')
    rate,said,wrote,codes = fetch(hub, tmp_path, code=_commands)
    assert (rate,codes)==('8000','[0, 0, 2]') and said.split('\t')[1]==clf.predict(tmp_path/'cwd'/'x.wav').label
    assert wrote.split('\t')==['x.wav', recognizer().transcribe(tmp_path/'cwd'/'x.wav').text]

def test_hub_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    refused('me/digits', 'pip install huggingface_hub')
