"Networks by name, the classifier and its windows, and what a learner keeps, measures and plays"
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, soundfile as sf, torch, torch.nn as nn
from fastai.callback.core import Callback, CancelValidException
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.torch_core import set_seed

from fastaudio_lite.audio import AudioTensor, AudioWarning, load_audio
from fastaudio_lite.classifier import AudioCNN, Classifier, arch_name, audio_learner, create_model, hear_confused
from fastaudio_lite.data import AudioDataLoaders
from fastaudio_lite.export import save_pretrained
from fastaudio_lite.kinds import PretrainedError
from fastaudio_lite.spectrogram import FrontEnd
from fastaudio_lite.training import AverageWeights, TeacherForcing, checkpoint
from fastaudio_lite.voices import TrimSilence

sr = 8000

def tone(hz=440., dur=.5, chs=1, seed=0):
    t = torch.arange(round(dur*sr))/sr
    noise = torch.randn(chs, len(t), generator=torch.Generator().manual_seed(seed))
    return AudioTensor(.3*torch.sin(2*torch.pi*hz*t) + .02*noise, sr=sr)

def front_end(**kw): return FrontEnd(sr, n_mels=16, hop=400, **kw)

def make(seed=0, **kw):
    "A classifier of windows of half a second, not trained"
    torch.manual_seed(seed)
    cfg = dict(arch='AudioCNN', n_in=1, vocab=['high','low'], dur=.5, multi=False, front_end=front_end().config(), net=dict(chs=[4,8]))
    return Classifier.from_config(cfg|kw)

def loaders(n=12, **kw):
    "Loaders of `n` tones, high and low ones in turn; the last third is held out"
    xs,ys = [tone(1500 if i%2 else 400, .3+.02*i, seed=i) for i in range(n)],['high' if i%2 else 'low' for i in range(n)]
    kw = dict(splitter=lambda o: (list(range(2*n//3)), list(range(2*n//3, n))), bs=4, num_workers=0, front_end=front_end())|kw
    return AudioDataLoaders.from_lists('.', [(o.numpy(), sr) for o in xs], ys, **kw)

def learner(dls=None, arch=None, **kw):
    torch.manual_seed(0)
    learn = audio_learner(dls or loaders(), arch or AudioCNN(2, chs=(4,8)), **kw)
    learn.logger = lambda o: None
    return learn

def fit(learn, n=1, lr=1e-2, **kw):
    with learn.no_bar(): learn.fit(n, lr, **kw)
    return learn

def params(learn): return [o.detach().clone() for o in learn.model.parameters()]

# Figures and averages
def test_metrics_are_of_the_epoch():
    "The accuracy of the last epoch is the network's on the clips held out, and not a mean over epochs"
    class Wrong(Callback):
        "In the first epoch all answers are wrong, in the second all are right"
        order = -100
        def after_pred(self):
            if not self.training: self.learn.pred = torch.eye(2)[(self.y + (self.epoch==0))%2]*9.
    learn = fit(learner(), 2, cbs=Wrong())
    assert [o[-1] for o in learn.recorder.values]==[0,1]

class Weights(Callback):
    "The weights after each batch"
    order = 61
    def before_fit(self): self.seen = [params(self)]
    def after_batch(self):
        if self.training: self.seen.append(params(self))

def test_average_is_measured_and_kept():
    "Validation hears the average of the weights, and the model is left with it; training goes on from the weights themselves"
    learn,w = learner(),Weights()
    fit(learn, 3, cbs=[AverageWeights(.9), w])
    avg = w.seen[0]
    for n,now in enumerate(w.seen[1:], 1): avg = [torch.lerp(a, b, 1-min(.9, (n+1)/(n+10))) for a,b in zip(avg, now)]
    for a,b in zip(avg, params(learn)): assert torch.allclose(a, b, atol=1e-6)
    assert not all(torch.allclose(a, b, atol=1e-6) for a,b in zip(avg, w.seen[-1]))
    said = learn.recorder.values[-1][-2]
    with learn.no_bar(): assert learn.validate()[0]==pytest.approx(said, abs=1e-5)

def test_average_without_validation():
    "Where the validation is cancelled, training goes the same way and the same average is kept"
    class Unseen(Callback):
        order = -100
        def before_validate(self): raise CancelValidException
    def _kept(*cbs):
        set_seed(0)
        return params(fit(learner(arch=AudioCNN(2, chs=(4,8), p=0)), 2, cbs=[AverageWeights(.9), *cbs]))
    heard,blind = _kept(),_kept(Unseen())
    for a,b in zip(heard, blind): assert torch.equal(a, b)

def test_teacher_forcing():
    "The network gets the targets, and nobody after it does"
    class Told(AudioCNN):
        seen = ()
        def forward(self, x, *args):
            self.seen += (len(args),)
            return super().forward(x)
    learn = learner(arch=Told(2, chs=(4,8)), cbs=TeacherForcing())
    with learn.no_bar():
        learn.fit(1, 1e-2)
        assert set(learn.model.seen)=={1} and len(learn.xb)==1
        assert learn.predict(tone(900))[0] in learn.dls.vocab

# The classifier and its learner
def test_no_kind():
    "A learner that does not say what it answers is not guessed at"
    with pytest.raises(PretrainedError, match='expected one of `audio_learner`'): save_pretrained(Learner(loaders(), AudioCNN(2, chs=(4,8))), 'm')

@pytest.mark.parametrize('arch', ['CTCModel', 'nothing:at all'])
def test_networks_of_other_kinds(arch):
    with pytest.raises(ValueError, match='expected one of AudioCNN, Committee'): create_model(arch, 2)

def test_shares_nothing():
    "Training on, or another precision of the one, leaves the other as it was"
    learn,x = fit(learner()),tone(900)
    clf = Classifier(learn)
    before = clf.predict(x)
    fit(learn)
    assert clf.predict(x)==before!=Classifier(learn).predict(x)
    was = params(learn)
    Classifier(learn).half()
    for o in (learn.model, learn.dls.front_end): assert all(v.dtype!=torch.float16 for v in o.state_dict().values())
    with torch.no_grad():
        for o in clf.state_dict().values(): o.zero_()
    assert all(torch.equal(a, b) for a,b in zip(was, params(learn)))

def test_trim_goes_along():
    "What was cut off in training is cut off in use, and stands in config, card and graph"
    learn = learner(loaders(item_tfms=TrimSilence(35.)))
    clf = Classifier(learn)
    assert clf.trim==clf.config()['trim']==clf.onnx_facts()['trim']==35 and any('35 dB' in o for o in clf.card()['hears'])
    assert 'trim' not in make().config()|make().onnx_facts()
    gap = torch.zeros(1, 1600)
    padded = AudioTensor(torch.cat([gap, tone(dur=.4).as_subclass(torch.Tensor), gap], 1), sr=sr)
    assert abs(clf.predict(padded).prob-clf.predict(tone(dur=.4)).prob) < .02

def test_checkpoint_damaged(tmp_path):
    "Cut off, of another make, or of another run: one sentence that names the file"
    fn,learn = tmp_path/'checkpoint.pt',learner()
    ck = checkpoint(fn)
    fit(learn, start_epoch=ck.load(learn), cbs=ck)
    raw,d = fn.read_bytes(),torch.load(fn, weights_only=True)
    wrong = [raw[:len(raw)//2], raw[:1], b'', b'\0'*len(raw)]
    for o in [[], [d], {}, {'model':d['model']}, d|dict(about=None), d|dict(epoch='1'), d|dict(mem=[]), d|dict(opt={}), d|dict(model=None),
        d|dict(model={}), d|dict(model={k:v[:1] for k,v in d['model'].items() if v.ndim}), d|dict(opt=[1])]:
        torch.save(o, fn)
        wrong.append(fn.read_bytes())
    for o in wrong:
        fn.write_bytes(o)
        with pytest.raises(ValueError, match='checkpoint.pt'): checkpoint(fn).load(learner())
    torch.save(d|dict(mem={'nobody':{}}), fn)
    ck = checkpoint(fn)
    with pytest.raises(ValueError, match='with nobody, expected the same callbacks'): fit(learn, 2, start_epoch=ck.load(learn), cbs=ck)

# Windows
def test_silent_windows_have_no_vote():
    "More silence around a sound does not change what it is; silent windows have no name"
    clf = make()
    x = torch.cat([tone(dur=1.), torch.zeros(1, 2*sr)], 1)
    p,q = (clf.predict(AudioTensor(o, sr=sr)) for o in (x, torch.cat([x, torch.zeros(1, 4*sr)], 1)))
    assert p.probs==pytest.approx(q.probs, abs=1e-6) and len(q.windows)>len(p.windows)
    silent = [o for o in q.windows if not o.text]
    assert len(silent)>10 and all(o.prob==0 for o in silent) and not p.silent
    mean = np.mean([o.prob if o.text=='high' else 1-o.prob for o in q.windows if o.text])
    assert q.probs['high']==pytest.approx(mean, abs=1e-6)
    with pytest.warns(AudioWarning, match='silence'): assert clf.predict(AudioTensor(torch.zeros(1, sr), sr=sr)).silent

@pytest.mark.parametrize('chs', [1,2])
@pytest.mark.parametrize('n', [4001, 6000, 17199])
def test_windows_end_with_the_sound(n, chs, tmp_path):
    "In a file as in memory, mono or stereo"
    clf,x = make(n_in=chs),tone(dur=n/sr, chs=chs)
    sf.write(tmp_path/'a.wav', x.numpy().T, sr, subtype='FLOAT')
    a,b = clf.predict(x),clf.predict(tmp_path/'a.wav')
    assert len(a.windows)>1 and a.windows[-1].end==pytest.approx(n/sr)
    assert [(o.start,o.end) for o in a.windows]==[(o.start,o.end) for o in b.windows] and a.probs==pytest.approx(b.probs, abs=1e-5)

def test_slopes_are_no_channels(tmp_path):
    "A front end with slopes hears mono; two channels are mixed"
    clf,x = make(n_in=2, front_end=front_end(deltas=1).config()),tone(dur=2., chs=2)
    sf.write(tmp_path/'a.wav', x.numpy().T, sr, subtype='FLOAT')
    mono = clf.predict(AudioTensor(x.mean(0, keepdim=True), sr=sr))
    assert clf.channels==1 and clf.predict(tmp_path/'a.wav').probs==pytest.approx(mono.probs, abs=1e-4)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(dtype):
    "Half the precision, the same answer"
    clf,x = make(),tone()
    want = clf.predict(x).probs
    assert clf.to(dtype).predict(x).probs==pytest.approx(want, abs=.03)

def test_sound_goes_where_the_model_is(monkeypatch):
    "Batches are handed over on the model's device"
    clf,seen = make(),[]
    monkeypatch.setattr(Classifier, 'buffers', lambda self: iter([SimpleNamespace(device=torch.device('meta'))]))
    monkeypatch.setattr(Classifier, 'forward', lambda self, wav, lens=None: seen.append(wav.device) or torch.full((len(wav), 2), .5))
    clf.predict(tone(dur=2.))
    assert {o.type for o in seen}=={'meta'}

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    clf,x = make(),tone(dur=2.)
    assert clf.predict(x).probs==pytest.approx(clf.cuda().predict(x).probs, abs=1e-3)

# Networks by name
def test_names_of_libraries():
    "One name, two libraries: the one that it came from"
    import torchvision
    timm = pytest.importorskip('timm')
    assert arch_name(timm.models.resnet18)=='timm:resnet18' and arch_name(torchvision.models.resnet18)=='torchvision:resnet18'
    assert arch_name('resnet18')=='timm:resnet18' and arch_name(AudioCNN)=='AudioCNN'
    with pytest.raises(ValueError, match='network of your own'): arch_name(nn.Linear)

def test_own_settings():
    "A network of the table is made as it is asked for"
    net = create_model('AudioCNN', 3, 2, chs=(4,8))
    assert net.config()|dict(p=0)==dict(n_out=3, n_in=2, chs=[4,8], p=0) and net.head.out_features==3

@pytest.fixture
def weights(monkeypatch):
    "The weights that torchvision would fetch"
    from torchvision.models import ResNet18_Weights, resnet18
    torch.manual_seed(7)
    sd = resnet18().state_dict()
    monkeypatch.setattr(ResNet18_Weights, 'get_state_dict', lambda self, *args, **kwargs: sd)
    return sd

def test_pretrained_weights_arrive(weights, monkeypatch):
    "All but the last layer; the first one sums over the colors that a spectrogram lacks"
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'no')
    got = create_model('torchvision:resnet18', 3, 1, pretrained=True).state_dict()
    for k,v in weights.items():
        if k!='conv1.weight' and not k.startswith('fc.'): assert torch.equal(got[k], v), k
    assert torch.allclose(got['conv1.weight'], weights['conv1.weight'].sum(1, keepdim=True), atol=1e-6) and got['fc.weight'].shape==(3,512)

@pytest.mark.parametrize('arch', ['torchvision:resnet18', 'timm:resnet18'])
def test_pretrained_offline(arch, monkeypatch):
    "Offline nobody is asked: a warning, and a network that is not trained"
    import socket
    def no(*args, **kwargs): raise AssertionError('the network was asked')
    monkeypatch.setattr(socket, 'getaddrinfo', no)
    monkeypatch.setattr('torch.hub.download_url_to_file', no)
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'yes')
    with pytest.warns(AudioWarning, match='the setting offline is on'): net = create_model(arch, 3, pretrained=True)
    assert isinstance(net, nn.Module)

# What was confused
class Always(nn.Module):
    "Says `high`, whatever it hears"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x): return torch.tensor([[1.,0.]]).expand(len(x), 2) + self.w

def _from_lists(path):
    dls = loaders()
    return dls,next(dls.valid_ds[i][0] for i in range(4) if dls.valid_ds[i][1]==1)

def _from_df(path):
    for i in range(12): sf.write(path/f'{i}.wav', tone(1500 if i%2 else 400, .3+.02*i, seed=i).numpy().T, sr, subtype='FLOAT')
    df = pd.DataFrame(dict(file=[f'{i}.wav' for i in range(12)], label=['high' if i%2 else 'low' for i in range(12)], held=[i>7 for i in range(12)]))
    dls = AudioDataLoaders.from_df(df.iloc[::-1], path, valid_col='held', bs=4, num_workers=0, front_end=front_end())
    return dls,load_audio(path/'10.wav', sr)

@pytest.mark.parametrize('make_dls', [_from_lists, _from_df])
def test_hear_confused(make_dls, tmp_path, monkeypatch):
    "The clip that is played is one that was confused, wherever the clips came from"
    dls,want = make_dls(tmp_path)
    heard = []
    monkeypatch.setattr(AudioTensor, 'hear', lambda self, *args: heard.append(self))
    learn = learner(dls, Always())
    with learn.no_bar(): assert hear_confused(ClassificationInterpretation.from_learner(learn))==[('low','high',2)]
    got, = heard
    assert got.shape==want.shape and torch.allclose(got, want, atol=1e-4)
