"Files to batches: what fastai does with them, and what happens when the data are not as one thinks"
import inspect, os, pickle, shutil, warnings
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import matplotlib, numpy as np, pandas as pd, pytest, torch
matplotlib.use('agg')
import matplotlib.pyplot as plt
from fastai.callback.all import ProgressCallback
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.transforms import FuncSplitter, RandomSplitter
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fasttransform import Transform
from torch import nn, tensor
from torch.nn.utils.rnn import pad_sequence

from fastaudio_lite.audio import AudioError, AudioTensor, AudioWarning
from fastaudio_lite.audio import audio_info, get_audio_files, load_audio, pad_audio, save_audio
from fastaudio_lite.augment import Gain, aug_tfms
from fastaudio_lite.data import *
from fastaudio_lite.datasets import digit_files, digit_label, digit_speaker, is_digit_test
from fastaudio_lite.spectrogram import AudioSpectrogram, AudioToSpec, FrontEnd

kw = dict(sr=8000, bs=8, num_workers=0)
L,takes = AudioDataLoaders,FuncSplitter(is_digit_test)

def plain(x): return x.as_subclass(torch.Tensor)
def tone(n, sr=8000, hz=440, c=1):
    x = 0.5*torch.sin(2*torch.pi*hz*torch.arange(n)/sr)
    return AudioTensor(x[None].repeat(c,1), sr=sr)
def tones(*lens, **k): return [tone(n, **k) for n in lens]
def sample(dls): return dls.train.new(shuffle=False).one_batch()
def label(o): return Path(o).parent.name

class Net(nn.Module):
    "Answers by the mean over real frames, or samples"
    def __init__(self, n):
        super().__init__()
        self.l = nn.Linear(1, n)
    def forward(self, x):
        n = torch.as_tensor(x.lens).view(-1,1)
        assert n.max()<=x.shape[-1]
        return self.l(plain(x).flatten(1,-2).mean(1).sum(-1, keepdim=True)/n)

def learner(dls, multi=False):
    learn = Learner(dls, Net(len(dls.vocab)), loss_func=(BCEWithLogitsLossFlat if multi else CrossEntropyLossFlat)())
    learn.remove_cbs(learn.cbs.filter(lambda o: isinstance(o, ProgressCallback)))
    with learn.no_logging(): learn.fit(1)
    return learn

@pytest.fixture(scope='module')
def files(): return digit_files('starter')[::15]

@pytest.fixture(scope='module')
def spec_dls(files): return L.from_path_func('.', files, digit_label, splitter=takes, **kw)

@pytest.fixture(scope='module')
def wav_dls(files): return L.from_path_func('.', files, digit_label, splitter=takes, front_end=False, **kw)

@pytest.fixture(scope='module')
def tag_dls(files): return L.from_lists('.', files, [[digit_label(o), digit_speaker(o)] for o in files], seed=0, **kw)

@pytest.fixture(scope='module', params=['spec','wav','tag'])
def learn(request): return learner(request.getfixturevalue(f'{request.param}_dls'), request.param=='tag')

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Two classes, clips of the same names, 10 to 29 hundredths of a second"
    path = tmp_path_factory.mktemp('sounds')
    for split,n in (('train',8),('valid',4)):
        for k,hz in (('low',300),('high',2000)):
            (path/split/k).mkdir(parents=True)
            for i in range(n): save_audio(tone(800+200*i+10*n, hz=hz), path/split/k/f'{i}.wav')
    return path

# Collation
def test_collate_pad_sequence():
    wavs = [AudioTensor(torch.randn(1,n)*0.1, sr=8000) for n in (100,37,250,1)]
    xb,yb = audio_collate([(o, tensor(i)) for i,o in enumerate(wavs)])
    assert torch.equal(plain(xb)[:,0], pad_sequence([plain(o)[0] for o in wavs], batch_first=True))
    assert xb.lens.tolist()==[100,37,250,1] and xb.sr==8000 and yb.tolist()==[0,1,2,3]

def test_collate_columns():
    a,b = tones(30, 20),tones(5, 50)
    x,t,n = audio_collate([(a[0],b[0],1), (a[1],b[1],2)])
    assert x.lens.tolist()==[30,20] and t.lens.tolist()==[5,50] and n.tolist()==[1,2]

@pytest.mark.parametrize('odd,words', [(tone(100, sr=16000), ['8000','16000','sr=8000']), (tone(100, c=2), ['[1, 2]','mono=True'])])
def test_collate_says(odd, words):
    with pytest.raises(AudioError) as e: audio_collate([(tone(100), 0), (odd, 1)])
    assert all(o in str(e.value) for o in words)

def test_cat_lens():
    a,b = pad_audio(tones(100, 50)),pad_audio(tones(70, 80, 20))
    c = torch.cat([a, b])
    assert c.shape==(5,1,100) and c.lens.tolist()==[100,50,70,80,20] and c.sr==8000
    assert torch.equal(plain(c)[2:,:,:80], plain(b)) and not plain(c)[2:,:,80:].any() and b.shape[-1]==80
    fe = FrontEnd(sr=8000, norm=None)
    s = torch.cat([fe(a), fe(b)])
    assert isinstance(s, AudioSpectrogram) and s.hop==fe.hop
    assert s.lens.tolist()==[*fe(a).lens.tolist(), *fe(b).lens.tolist()]

def test_cat_elsewhere():
    "Along time, of items, and of batches without lengths, `torch.cat` is as ever"
    assert torch.cat(tones(3, 5), -1).shape==(1,8)
    for xs in (tones(3, 5), [AudioTensor(torch.zeros(1,1,n), sr=8000) for n in (3,5)]):
        with pytest.raises(RuntimeError): torch.cat(xs)
    assert torch.cat([torch.zeros(2,3), torch.ones(1,3)]).shape==(3,3)

# Showing
def shown(ax):
    if ax.images: return ax.images[0].get_array().shape[-1]
    return ax.lines[0].get_xdata()[-1]*8000

def test_show_batch(learn):
    dl = learn.dls.valid
    b = dl.one_batch()
    ctxs = show_batch(*dl._pre_show_batch(b, max_n=4), max_n=4)
    lens = b[0].lens.tolist()
    assert len(ctxs)==4 and len(set(lens[:4]))>1
    for ax,n in zip(ctxs, lens): assert abs(shown(ax)-n)<=2 and ax.get_title()
    learn.dls.show_batch(max_n=3, nrows=1, figsize=(6,2))
    learn.dls.train.show_batch(unique=True, max_n=2)
    plt.close('all')

def test_show_results(learn):
    with learn.no_bar(): learn.show_results(max_n=3)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert sum(' → ' in o for o in titles)==3
    plt.close('all')

def test_interpretation(learn):
    "The worst clips lie in batches of different lengths; each is drawn as long as it is"
    with learn.no_bar():
        interp = Interpretation.from_learner(learn)
        n = len(learn.dls.valid_ds)
        interp.plot_top_losses(n, figsize=(6,6))
        lens = [o[0].shape[-1] for o in learn.dls.valid_ds]
        want = [lens[i] for i in interp.top_losses()[1]]
        hop = 1 if isinstance(learn.dls.one_batch()[0], AudioTensor) else 80
        got = [shown(ax) for ax in plt.gcf().axes if ax.get_title()]
        assert len(got)==n and len(set(want))>3
        assert all(abs(a-(b//hop + (hop>1)))<=2 for a,b in zip(got, want))
        assert 'loss' in plt.gcf().axes[0].get_title()
        interp.show_results([0,1,2])
    plt.close('all')

def test_confusion(spec_dls):
    learn = learner(spec_dls)
    with learn.no_bar(): cm = ClassificationInterpretation.from_learner(learn).confusion_matrix()
    assert cm.sum()==len(spec_dls.valid_ds)

def test_hear(learn, capsys):
    assert '<audio' in hear_batch(learn.dls, 2)._repr_html_()
    with learn.no_bar(): hear_top_losses(Interpretation.from_learner(learn), 2)
    assert capsys.readouterr().out.count('.wav:')==2

def test_hear_without_padding(wav_dls):
    x,_ = wav_dls.valid.one_batch()
    player = hear_batch(wav_dls.valid, 2)
    assert load_audio(player.data).n_samples==int(x.lens[:2].sum())+2*1600

# What a Learner does
def test_predict(learn, files):
    with learn.no_bar():
        fn = files[3]
        ways = [fn, str(fn), fn.read_bytes(), load_audio(fn), (load_audio(fn)[0].numpy(), 8000)]
        probs = [learn.predict(o)[2] for o in ways]
        for p in probs: assert torch.allclose(p, probs[0], atol=1e-3)
        assert torch.equal(learn.predict(fn)[2], probs[0])
        assert (learn.predict(load_audio(fn, 16000))[2]-probs[0]).abs().max()<0.05

def test_predict_says(learn):
    with learn.no_bar():
        with pytest.raises(FileNotFoundError): learn.predict('nothing.wav')
        with pytest.raises(AudioError, match='rate'): learn.predict(np.zeros(800))

def test_test_dl(learn, files):
    with learn.no_bar():
        dl = learn.dls.test_dl(files[:11])
        alone = torch.cat([learn.get_preds(dl=learn.dls.test_dl([o]))[0] for o in files[:11]])
        assert torch.allclose(learn.get_preds(dl=dl)[0], alone, atol=1e-4)

def test_get_preds_with_input(learn):
    with learn.no_bar(): x,p,_ = learn.get_preds(with_input=True)
    items = [x.sr and learn.dls.valid_ds[i][0].shape[-1] for i in range(len(p))]
    lens = x.lens.tolist() if isinstance(x, AudioTensor) else [(n-1)*80 for n in x.lens.tolist()]
    assert len(x)==len(items) and all(abs(a-b)<=80 for a,b in zip(lens, items))

def test_tta(learn):
    with learn.no_bar(): p,t = learn.tta(n=2)
    assert len(p)==len(t)==len(learn.dls.valid_ds)

@pytest.mark.filterwarnings('ignore:load_learner')
def test_export(learn, files, tmp_path):
    learn.export(tmp_path/'l.pkl')
    new = load_learner(tmp_path/'l.pkl')
    with learn.no_bar(), new.no_bar(): a,b = learn.predict(files[0])[2],new.predict(files[0])[2]
    assert torch.allclose(a, b, atol=1e-5)

def test_pickle(spec_dls):
    new = pickle.loads(pickle.dumps(spec_dls))
    (a,_),(b,_) = spec_dls.valid.one_batch(),new.valid.one_batch()
    assert torch.equal(plain(a), plain(b)) and torch.equal(a.lens, b.lens) and b.sr==8000

def test_multi(tag_dls, files):
    assert set(tag_dls.vocab)=={digit_label(o) for o in files}|{digit_speaker(o) for o in files}
    x,y = tag_dls.one_batch()
    assert y.shape==(8,len(tag_dls.vocab)) and (y.sum(1)==2).all()

def test_lens_move(spec_dls, wav_dls):
    for dls in (spec_dls, wav_dls):
        x = dls.one_batch()[0]
        assert x.lens.device==x.device
        for y in (x.to('cpu'), x.cpu(), x.half().float(), x*1): assert torch.equal(y.lens, x.lens)
    assert wav_dls.one_batch()[0].to('meta').lens.device.type=='meta'

# Order, seeds, workers
def test_workers_agree(folder):
    "The same batches from 0, 1 and 2 workers, with a cache folder that they share"
    got = []
    for n in (0,1,2):
        set_seed(1)
        dls = L.from_folder(folder, sr=8000, bs=4, num_workers=n, cache=folder/'.cache')
        got.append([(plain(x),x.lens,y) for dl in dls for x,y in dl])
    for other in got[1:]:
        for a,b in zip(got[0], other, strict=True): assert all(torch.equal(plain(i), plain(j)) for i,j in zip(a, b))
    assert len(list((folder/'.cache').glob('*.npy')))==24 and not list((folder/'.cache').glob('*.tmp'))

def test_seed(folder):
    def batches():
        set_seed(3)
        dls = L.from_folder(folder, dur=0.1, batch_tfms=aug_tfms(), **kw)
        return [(plain(x),plain(y)) for _ in range(2) for x,y in dls.train]
    for (a,i),(b,j) in zip(batches(), batches()): assert torch.equal(a, b) and torch.equal(i, j)

def test_crop():
    x = AudioTensor(torch.arange(1000)[None]/1000, sr=8000)
    tfm = CropAudio(0.05)
    mids = [tfm(x, split_idx=s) for s in (1,1,None)]
    assert all(torch.equal(plain(o), plain(x)[:,300:700]) for o in mids)
    starts = [tfm(x, split_idx=0)[0,0].item() for _ in range(200)]
    assert min(starts)<0.05 and max(starts)>0.55 and all(tfm(x, split_idx=0).n_samples==400 for _ in range(9))
    assert tfm(x[:,:400], split_idx=0).n_samples==400 and tfm(x[:,:5]).n_samples==5
    for o in (0, -1, float('nan')):
        with pytest.raises(ValueError, match='above zero'): CropAudio(o)

def test_random_piece(folder):
    x = AudioTensor(torch.arange(1000)[None]/1000, sr=8000)
    tfm = RandomPiece(0.05)
    assert all(tfm(x, split_idx=s) is x for s in (1,None)) and tfm(x[:,:400], split_idx=0).n_samples==400
    pieces = [tfm(x, split_idx=0) for _ in range(200)]
    starts = [int(o[0,0]*1000+0.5) for o in pieces]
    assert min(starts)<50 and max(starts)>950 and all(o.sr==8000 for o in pieces)
    for o,i in zip(pieces, starts): assert torch.equal(plain(o)[0], plain(x)[0].roll(-i)[:400])
    with pytest.raises(ValueError, match='above zero'): RandomPiece(0)
    dls = L.from_folder(folder, item_tfms=RandomPiece(0.05), front_end=False, **kw)
    assert dls.one_batch()[0].shape[-1]==400 and dls.valid.one_batch()[0].shape[-1]>400

def test_crop_valid(folder):
    dls = L.from_folder(folder, dur=0.12, front_end=False, **kw)
    a,b = [[x for x,_ in dls.valid] for _ in range(2)]
    for x,y in zip(a, b): assert torch.equal(plain(x), plain(y)) and x.shape[-1]<=960
    with pytest.raises(ValueError): AudioBlock(dur=0)

def test_small_data(folder):
    "A batch size above the number of clips is one batch, not none"
    dls = L.from_folder(folder, sr=8000, bs=64, num_workers=0)
    assert [len(o) for o in dls]==[1,1] and len(dls.one_batch()[1])==16
    dls = L.from_folder(folder, sr=8000, bs=10, num_workers=0)
    assert len(dls.train)==1 and len(dls.one_batch()[1])==10

def test_augment_train_only(folder):
    dls = L.from_folder(folder, front_end=False, batch_tfms=Gain(20), **kw)
    assert dls.one_batch()[0].abs().max()>4 and dls.valid.one_batch()[0].abs().max()<1

# Cache
def test_cache_names(folder, tmp_path):
    c = AudioCache(tmp_path/'c')
    names = {c.key(o, 8000) for o in get_audio_files(folder)}
    assert len(names)==24
    fn = folder/'train'/'low'/'0.wav'
    os.utime(fn, ns=(7,7))
    assert c.key(fn, 16000) not in names
    assert c.key(fn)==c.key(str(fn))==sha256(repr((str(fn), fn.stat().st_size, 7, ())).encode()).hexdigest()[:32]

@pytest.mark.parametrize('disk', [True, False])
def test_cache_changed(tmp_path, disk):
    "Another content under the same name and size is decoded anew"
    fn,c = tmp_path/'a.wav',AudioCache(tmp_path/'c' if disk else None)
    save_audio(tone(800), fn)
    old = c(fn, load_audio)
    save_audio(tone(800, hz=2000), fn)
    os.utime(fn, ns=(1,1))
    assert not torch.equal(plain(c(fn, load_audio)), plain(old))

def test_cache_same(tmp_path):
    for i,wav in enumerate((tone(800), tone(900, sr=44100, c=2))):
        fn = save_audio(wav, tmp_path/f'{i}.wav', subtype='FLOAT')
        c = AudioCache(tmp_path/'c')
        a,b = c(fn, AudioTensor.create),c(fn, None)
        for o in (a,b): assert torch.equal(plain(o), plain(wav)) and o.sr==wav.sr and o.lens is None

@pytest.mark.parametrize('harm', [lambda b: b[:90], lambda b: b'', lambda b: b'nonsense', lambda b: b[:-4], lambda b: b[:200]])
def test_cache_heals(tmp_path, harm):
    fn,c = save_audio(tone(800), tmp_path/'a.wav'),AudioCache(tmp_path/'c')
    want = c(fn, load_audio)
    kept = next((tmp_path/'c').iterdir())
    kept.write_bytes(harm(kept.read_bytes()))
    with pytest.warns(AudioWarning, match='decoded afresh'): got = c(fn, load_audio)
    assert torch.equal(plain(got), plain(want)) and torch.equal(plain(c(fn, None)), plain(want))

def test_cache_no_folder(tmp_path):
    fn = save_audio(tone(800), tmp_path/'a.wav')
    (tmp_path/'file').write_text('')
    with pytest.warns(AudioWarning): assert AudioCache(tmp_path/'file')(fn, load_audio).n_samples==800

def test_cache_is_no_data(folder):
    "Cached clips inside the data folder do not become clips of the data"
    n = len(get_audio_files(folder))
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        L.from_folder(folder, cache=folder/'cache', **kw)
        dls = L.from_folder(folder, cache=folder/'cache', **kw)
    assert len(get_audio_files(folder))==n==len(dls.train_ds)+len(dls.valid_ds)
    assert not [o for o in w if o.category is AudioWarning]
    shutil.rmtree(folder/'cache')

def test_memory_cache(files):
    tfm = OpenAudio(8000, cache=True)
    a = tfm(files[0])
    a.mul_(0)
    assert tfm(files[0]).abs().max()>0 and len(tfm.cache.mem)==1
    assert not pickle.loads(pickle.dumps(tfm)).cache.mem
    dls = L.from_path_func('.', files, digit_label, sr=8000, cache=True)
    assert dls.train.fake_l.num_workers==dls.valid.fake_l.num_workers==0

# Data that are not as one thinks
def test_missing_files(files):
    with pytest.raises(FileNotFoundError, match='1 of .*gone.wav'): L.from_path_func('.', [*files, Path('gone.wav')], lambda o: 'a', **kw)

def test_missing_in_csv(folder, tmp_path):
    df = pd.DataFrame(dict(f=[f'train/low/{i}.wav' for i in range(9)], y=list('ab')*4+['a']))
    df.to_csv(folder/'labels.csv', index=False)
    with pytest.raises(FileNotFoundError, match=r'1 of 9 .*8\.wav'): L.from_csv(folder, **kw)
    df[:8].to_csv(folder/'labels.csv', index=False)
    assert list(L.from_csv(folder, seed=0, **kw).vocab)==['a','b']

@pytest.mark.parametrize('col', ['f','y'])
def test_empty_cells(folder, col):
    df = pd.DataFrame(dict(f=[f'{i}.wav' for i in range(8)], y=list('ab')*4))
    df.loc[5,col] = None
    with pytest.raises(ValueError, match=f"column '{col}' .*row 5"): L.from_df(df, folder/'train'/'low', **kw)

def test_no_tags(folder):
    "Several labels may also be none"
    df = pd.DataFrame(dict(f=[f'{i}.wav' for i in range(8)], y=['a b','a','b',None]*2))
    dls = L.from_df(df, folder/'train'/'low', label_delim=' ', seed=1, **kw)
    assert list(dls.vocab)==['a','b'] and df.y.isna().sum()==2
    assert {tuple(o[1].tolist()) for o in [*dls.train_ds, *dls.valid_ds]}=={(1,1),(1,0),(0,1),(0,0)}

def test_no_sounds(tmp_path):
    with pytest.raises(ValueError, match='no sounds'): L.from_path_func('.', [], digit_label, **kw)
    with pytest.raises(ValueError, match='no sounds'): L.from_folder(tmp_path, valid_pct=0.2, **kw)
    with pytest.raises(ValueError, match='without train and valid'): L.from_folder(tmp_path, **kw)
    with pytest.raises(FileNotFoundError): L.from_folder(tmp_path/'nowhere', valid_pct=0.2, **kw)

def test_one_class(folder):
    with pytest.raises(ValueError, match='one class'): L.from_folder(folder/'train'/'low', valid_pct=0.25, **kw)

def test_empty_class(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'d')
    (tmp_path/'d'/'train'/'none').mkdir()
    with pytest.raises(ValueError, match='none with no audio'): L.from_folder(tmp_path/'d', **kw)
    (tmp_path/'d'/'train'/'none').rename(tmp_path/'d'/'train'/'models')
    assert list(L.from_folder(tmp_path/'d', **kw).vocab)==['high','low']

def test_splits(files):
    def dls(f): return L.from_path_func('.', files, digit_label, splitter=FuncSplitter(f), **kw)
    with pytest.raises(ValueError, match='for training'): dls(lambda o: True)
    with pytest.warns(AudioWarning, match='for validation'): dls(lambda o: False)
    with pytest.raises(ValueError, match="'9'.*training too"): dls(lambda o: digit_label(o)=='9')

def test_lists_say():
    with pytest.raises(ValueError, match='2 sounds and 1 labels'): L.from_lists('.', ['a','b'], [1], **kw)

def test_mixed(tmp_path):
    "Rates and channels: an error where they meet, unless one was asked for"
    for i in range(8): save_audio(tone(800*(1+i%2), sr=8000*(1+i%2), c=1+i//4), tmp_path/f'{i}.wav')
    fns = get_audio_files(tmp_path)
    def dls(**k):
        block = DataBlock((AudioBlock(**k), CategoryBlock), get_y=odd)
        return block.dataloaders(fns, bs=6, num_workers=0, shuffle=False)
    with pytest.raises(AudioError, match='sr=8000'): dls().one_batch()
    with pytest.raises(AudioError, match='mono=True'): list(dls(sr=8000, mono=False).train)
    x = dls(sr=8000).one_batch()[0]
    assert x.shape==(6,1,800) and x.sr==8000

def odd(o): return int(o.stem)%2

def test_wrong_front_end(folder):
    with pytest.raises(AudioError, match='8000.*16000'): L.from_folder(folder, front_end=FrontEnd(sr=16000), **kw)

# Constructors
def test_by_hand(folder):
    block = DataBlock((AudioBlock(sr=8000), CategoryBlock), get_items=get_audio_files, get_y=label,
        splitter=RandomSplitter(0.25, 0), batch_tfms=[AudioToSpec(FrontEnd(sr=8000))])
    dls = block.dataloaders(folder, bs=4, num_workers=0)
    assert isinstance(dls.one_batch()[0], AudioSpectrogram) and list(dls.vocab)==['high','low']

def test_by_hand_interpretation(files):
    dls = DataBlock((AudioBlock(sr=8000), CategoryBlock), get_y=digit, splitter=FuncSplitter(is_digit_test),
        batch_tfms=[AudioToSpec(FrontEnd(sr=8000))]).dataloaders(files, bs=8, num_workers=0)
    learn = learner(dls)
    with learn.no_bar(): Interpretation.from_learner(learn).plot_top_losses(3)
    plt.close('all')

def digit(o): return digit_label(o)

def test_regression(folder):
    dls = L.from_path_func('.', get_audio_files(folder), length, y_block=RegressionBlock, seed=0, **kw)
    x,y = dls.one_batch()
    assert y.dtype==torch.float32 and len(y)==8
    dls.show_batch(max_n=2)
    plt.close('all')

def length(o): return float(o.stem)

def test_waveforms_in_memory():
    sounds = [(tone(800+i)[0].numpy(), 8000) if i%2 else tone(800+i) for i in range(10)]
    dls = L.from_lists('.', sounds, list('ab')*5, seed=0, front_end=False, **kw)
    assert sorted(o[0].n_samples for o in [*dls.train_ds, *dls.valid_ds])==list(range(800, 810))

def test_constructors_agree(folder):
    "The same clips and labels, whichever way"
    fns = get_audio_files(folder)
    names = [str(o.relative_to(folder).with_suffix('')) for o in fns]
    df = pd.DataFrame(dict(name=names, kind=list(map(label, fns)), test=['valid' in o.parts for o in fns]))
    absolute = df.assign(name=[str(o) for o in fns])
    def valid(o): return 'valid' in o.parts
    def rows(d): return [list(np.where(d.test==v)[0]) for v in (False,True)]
    ways = [L.from_folder(folder, **kw), L.from_path_func('.', fns, label, splitter=FuncSplitter(valid), **kw)]
    ways.append(L.from_path_re('.', fns, r'/(\w+)/\d\.wav$', splitter=FuncSplitter(valid), **kw))
    ways.append(L.from_df(df, folder.parent, folder=folder.name, suff='.wav', label_col='kind', valid_col='test', **kw))
    ways += [L.from_df(absolute, '.', valid_col='test', **kw), L.from_df(absolute, '.', splitter=rows, **kw)]
    def tensors(dls): return [plain(o) for b in dls.valid for o in b]
    want = tensors(ways[0])
    for dls in ways: assert all(torch.equal(a, b) for a,b in zip(want, tensors(dls), strict=True))

def test_name_constructors(files):
    a = L.from_name_func('.', files, digit_speaker, seed=0, **kw)
    b = L.from_name_re('.', files, r'_(.+)_', seed=0, **kw)
    assert a.vocab==b.vocab

constructors = [k for k in dir(L) if k.startswith('from_') and k not in ('from_dblock','from_dsets')]
def test_names():
    "The constructors of fastai's `ImageDataLoaders`, and the source of all"
    assert set(constructors)=={f'from_{o}' for o in 'folder path_func path_re name_func name_re df csv lists source'.split()}

@pytest.mark.parametrize('name', constructors)
def test_signature(name):
    ps = inspect.signature(getattr(L, name)).parameters
    assert {'sr','dur','cache','front_end','batch_tfms','bs','num_workers'} <= set(ps) and 'kwargs' not in ps
    if name!='from_source': assert not {'get_x','get_y','get_items'} & set(ps)

# what a model must know of its loaders
class Slow(Transform):
    "An item transform with attributes that crops and trims have too"
    dur,top_db,piece = .1,99.,.1
    def encodes(self, x:AudioTensor): return x

class Trims(Slow): trim_db = 30.

def test_loaders_know_what_a_classifier_needs(files, spec_dls, wav_dls):
    longest = max(audio_info(o).dur for o in files)
    fe = FrontEnd(8000, n_mels=24)
    a,b,c = (L.from_path_func('.', files, digit_label, splitter=takes, front_end=fe, **kw, **k)
        for k in (dict(item_tfms=Slow()), dict(item_tfms=[Slow(),Trims()]), dict(item_tfms=Slow(), dur=.5)))
    assert [o.front_end for o in (a,b,c)]==[fe]*3
    assert (a.dur,b.dur,c.dur)==(longest,longest,.5) and (a.trim,b.trim,c.trim)==(0,30,0)
    assert spec_dls.dur==wav_dls.dur==longest
    with pytest.raises(AudioError, match='front end'): wav_dls.front_end

def test_front_end_of_one_loader_and_of_a_wrapped_one(spec_dls, wav_dls):
    fe = find_front_end(spec_dls)
    wrapped = SimpleNamespace(dl=SimpleNamespace(dl=spec_dls.train))
    assert isinstance(fe, FrontEnd) and fe is find_front_end(spec_dls.valid) is find_front_end(wrapped)
    assert find_front_end(wav_dls) is None and find_front_end(SimpleNamespace(dl=wav_dls.train)) is None
    assert find_front_end(torch.utils.data.DataLoader([1,2])) is None

@pytest.mark.filterwarnings('ignore::UserWarning')
def test_dur_of_loaders_that_lack_clips(files):
    "The longest may be a training clip, or the only ones there are"
    none = L.from_path_func('.', files, digit_label, splitter=lambda o: (list(range(len(o))),[]), **kw)
    assert none.dur==max(audio_info(o).dur for o in files)
    with pytest.raises(AudioError, match='without clips'): none.new_empty().dur

def test_dur_of_tables_lists_and_waveforms(tmp_path):
    clips = tones(800, 4000, 1600, 2400)
    for i,o in enumerate(clips): o.save(tmp_path/f'{i}.wav')
    df = pd.DataFrame(dict(f=[f'{i}.wav' for i in range(4)], l=list('abab')))
    k = dict(kw, splitter=lambda o: ([0,1],[2,3]))
    for o in (L.from_df(df, tmp_path, **k), L.from_lists('.', clips, list('abab'), **k)): assert o.dur==.5 and clip_durs(o.valid_ds)==[.2,.3]

# Tables and folders
@pytest.fixture
def clips(tmp_path):
    "Sixteen sounds that differ, in two folders of the working directory's stand-in"
    for i in range(16): tone(800+10*i, hz=300+100*i).save(tmp_path/f'{i:04}.wav')
    return tmp_path

def table(folder, text, name='labels.csv', encoding='utf-8'):
    (folder/name).write_bytes(text.encode(encoding))
    return folder/name

def csv_of(cells, head='file,label', sep=','): return '\n'.join([head, *(sep.join([f'{i:04}.wav', *map(str, o)]) for i,o in enumerate(cells))])+'\n'
def vocab(folder, text, **k): return list(L.from_csv(folder, table(folder, text).name, seed=0, **kw, **k).vocab)

@pytest.mark.parametrize('text', ['file,label\na.wav,x\n', 'file;label\r\na.wav;x\r\n', 'file\tlabel\na.wav\tx', 'file|label\ra.wav|x\r', '\ufefffile, label\n\n a.wav , x \n,\n', 'file,label\na.wav,x,,\n'])
@pytest.mark.parametrize('encoding', ['utf-8','utf-16'])
def test_read_table(tmp_path, text, encoding):
    df = read_table(table(tmp_path, text.lstrip('\ufeff') if encoding=='utf-16' else text, encoding=encoding), 'file', 'label')
    assert df.values.tolist()==[['a.wav','x']] and list(df)==['file','label']

def test_table_is_text_with_lines(tmp_path):
    df = read_table(table(tmp_path, 'file,label,n\n\na.wav,None,007\n\n"b\nc",NA,"1,5"\nd,nan,\n'))
    assert df.label.tolist()==['None','NA','nan'] and df.n.tolist()==['007','1,5',''] and df.index.tolist()==[3,5,7]
    assert list(read_table(tmp_path/'labels.csv', header=None))==[0,1,2]

@pytest.mark.parametrize('text,words', [('', 'empty'), ('file,label\n', 'without a row'), ('file,label,label\na,b,c\n', "'label' twice"),
    ('file,label\na,b,c\n', 'line 2.*comma'), ('file,kind\na,b\n', 'expected label too'), ('file,label\na,\0\n', 'no text'), ('file,label\na,"b\n'+'x'*200_000, 'quote')])
def test_tables_that_cannot_be_used(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): read_table(table(tmp_path, text), 'file', 'label')

@pytest.mark.parametrize('labels', [['None','NA'], ['null','nan'], ['007','7'], ['1','01'], ['True','true']])
def test_labels_stay_text(clips, labels): assert vocab(clips, csv_of([[labels[i%2]] for i in range(16)]))==sorted(labels)

def test_labels_are_clean(clips):
    nfc,nfd = 'caf\u00e9','cafe\u0301'
    ways = ['b',nfc,f' {nfd} ']
    assert vocab(clips, csv_of([[ways[i%3]] for i in range(16)]))==['b',nfc]
    files = get_audio_files(clips)
    labels = [ways[i%3] for i in range(16)]
    df = pd.DataFrame(dict(f=files, l=labels))
    for d in (L.from_lists('.', files, labels, seed=0, **kw), L.from_df(df, seed=0, **kw), L.from_path_func('.', files, lambda o: ways[int(o.stem)%3], seed=0, **kw)):
        assert list(d.vocab)==['b',nfc]

def test_numbers_where_they_are_meant(clips):
    text = csv_of([[i/2, 'ab'[i%2], i%4] for i in range(16)], 'file,size,label,fold')
    dls = L.from_csv(clips, table(clips, text).name, label_col='size', y_block=RegressionBlock,
        splitter=lambda df: (np.where(df.fold<3)[0], np.where(df.fold==3)[0]), **kw)
    assert dls.one_batch()[1].dtype==torch.float32
    hot = csv_of([[i%2, 1] for i in range(16)], 'file,dog,rain')
    assert vocab(clips, hot, label_col=['dog','rain'])==['dog','rain']
    enc = L.from_csv(clips, table(clips, hot).name, label_col=['dog','rain'], y_block=MultiCategoryBlock(encoded=True, vocab=['dog','rain']), seed=0, **kw)
    assert set(map(tuple, enc.one_batch()[1].tolist()))=={(0,1),(1,1)}

def test_hot_columns(clips):
    df = pd.DataFrame(dict(f=[f'{i:04}.wav' for i in range(16)], dog=[1,0]*8, rain=True, never=0))
    dls = L.from_df(df, clips, label_col=['dog','rain','never'], valid_pct=.25, seed=0, **kw)
    assert list(dls.vocab)==['dog','rain','never'] and {tuple(o[1].tolist()) for o in dls.train_ds}=={(1,1,0),(0,1,0)}

@pytest.mark.parametrize('cells,delim,want', [(['a, b','b,c'], ',', ['a','b','c']), (['a;b;','b'], ';', ['a','b']), ([['a','b '],['b']], None, ['a','b'])])
def test_several_labels(clips, cells, delim, want):
    df = pd.DataFrame(dict(f=[f'{i:04}.wav' for i in range(16)], l=cells*8))
    assert list(L.from_df(df, clips, label_delim=delim, seed=0, **kw).vocab)==want

@pytest.mark.parametrize('k,words', [(dict(label_col='kind'), "'kind', expected one of 'file', 'label'"), (dict(fn_col=7), 'no column 7'), (dict(valid_col='v'), "'v'")])
def test_columns_that_are_not_there(clips, k, words):
    table(clips, csv_of([['ab'[i%2]] for i in range(16)]))
    with pytest.raises(ValueError, match=words): L.from_csv(clips, **kw, **k)

def test_index_column(clips):
    table(clips, pd.DataFrame(dict(f=[f'{i:04}.wav' for i in range(16)], l=list('ab')*8)).to_csv())
    with pytest.raises(ValueError, match='without a name.*index'): L.from_csv(clips, **kw)
    assert list(L.from_csv(clips, fn_col='f', label_col='l', seed=0, **kw).vocab)==list(L.from_csv(clips, fn_col=1, label_col=2, seed=0, **kw).vocab)==['a','b']

# Splits
@pytest.mark.parametrize('no,yes', [('no','yes'), ('False','True'), ('0','1'), ('train','valid'), (' Train','VALID '), (False,True), (0.,1.), ('','yes'), (None,True)])
def test_valid_col(clips, no, yes):
    sides = [yes if i%4==3 else no for i in range(16)]
    df = pd.DataFrame(dict(f=[f'{i:04}.wav' for i in range(16)], l=list('aabb')*4, v=pd.Series(sides, dtype=object)))
    table(clips, df.to_csv(index=False))
    for d in (L.from_df(df, clips, valid_col='v', **kw), L.from_csv(clips, valid_col='v', **kw)):
        assert (len(d.train_ds),len(d.valid_ds))==(12,4) and set(d.valid_ds.items.f)=={f'{i:04}.wav' for i in (3,7,11,15)}

@pytest.mark.parametrize('cells', [range(5), [1.,2.,3.], list('12345'), ['yes','maybe'], ['train','yes'], ['','valid']])
def test_splits_that_nobody_meant(cells):
    with pytest.raises(ValueError, match="column 'v', expected"): read_split(cells, 'v')

def test_test_rows_are_left_out(clips):
    table(clips, csv_of([['ab'[i%2], 'train valid test train'.split()[i//2%4]] for i in range(16)], 'file,label,split'))
    with pytest.warns(AudioWarning, match='4 of 16 rows for the test'): dls = L.from_csv(clips, valid_col='split', **kw)
    assert (len(dls.train_ds),len(dls.valid_ds))==(8,4)
    assert read_labels(clips/'labels.csv').split.value_counts().to_dict()==dict(train=8, valid=4, test=4)

def test_read_labels_says(clips):
    rows = [['ab'[i%2], i%5] for i in range(16)]
    for head,words in (('file,label,fold','column fold'), ('file,kind,x','label too'), ('file,label,valid','folds 0, 1')):
        with pytest.raises(ValueError, match=words): read_labels(table(clips, csv_of(rows, head)))
    with pytest.raises(ValueError, match='label.*line 4'): read_labels(table(clips, 'file,label\n\n0000.wav,a\n0001.wav,\n'))
    with pytest.raises(FileNotFoundError, match='1 of 1 files missing'): read_labels(table(clips, 'file,label\ngone.wav,a\n'))
    with pytest.raises(ValueError, match='a folder of class folders or a csv file'): read_labels(clips/'0000.wav')

@pytest.mark.parametrize('copy', ['same', 'spelling', 'copy', 'link'])
def test_recordings_on_both_sides(clips, copy):
    other = dict(same=clips/'0000.wav', spelling=str(clips/'.'/'..'/clips.name/'0000.wav').replace('0000', './0000'), copy=clips/'c.wav', link=clips/'l.wav')[copy]
    if copy=='copy': shutil.copy(clips/'0000.wav', other)
    if copy=='link': os.symlink(clips/'0000.wav', other)
    files = [clips/'0000.wav', clips/'0001.wav', other, clips/'0003.wav']
    def dls(labels, valid=(2,3)): return L.from_lists('.', files, labels, splitter=lambda o: ([i for i in range(4) if i not in valid], list(valid)), **kw)
    with pytest.warns(AudioWarning, match='1 of 2 held-out recordings in the training too'): dls(list('abab'))
    with warnings.catch_warnings(action='error', category=AudioWarning): dls(list('abab'), (1,))
    with pytest.raises(ValueError, match="labelled 'a' and .* labelled 'b'"): dls(list('abbb'))

def test_equal_sizes_are_no_copies(tmp_path):
    for i in range(4): save_audio(tone(8000, hz=300+i), tmp_path/f'{i}.wav')
    with warnings.catch_warnings(action='error'): check_distinct(get_audio_files(tmp_path), [[0,1],[2,3]], list('abab'))

# Labels in lists; arrays and Series
@pytest.mark.parametrize('labels,words', [(['a',None]*8, 'no label for 8 of 16'), (['a',float('nan')]*8, 'first for number 1'), ([1,'b']*8, "'b' and 1"), (['a',' ']*8, 'no label')])
def test_labels_that_are_missing_or_mixed(clips, labels, words):
    with pytest.raises(ValueError, match=words): L.from_lists('.', get_audio_files(clips), labels, **kw)

@pytest.mark.parametrize('of', [np.array, lambda o: pd.Series(o, index=range(5, 21)), pd.Index, tuple])
def test_paths_in_arrays(clips, of):
    fs = of([str(o) for o in get_audio_files(clips)])
    def lab(o): return 'ab'[int(Path(o).stem)%2]
    ways = [L.from_path_func('.', fs, lab, seed=0, **kw), L.from_name_re('.', fs, r'(\d)\d\.wav$', seed=0, **kw), L.from_lists('.', fs, of(list('ab')*8), seed=0, **kw)]
    for d in ways: assert len(d.train_ds)+len(d.valid_ds)==16 and len(d.test_dl(fs).dataset)==16

def test_labelled_test_dl(clips):
    files = get_audio_files(clips)
    dls = L.from_lists('.', files, list('ab')*8, seed=0, **kw)
    assert isinstance(dls, L) and dls.test_dl([(files[0],'a'), (files[1],'b')], with_labels=True).one_batch()[1].tolist()==[0,1]
    assert len(dls.test_dl([(np.zeros(800, 'float32'), 8000)]).one_batch())==1

# Folders
def test_nested_folders(tmp_path):
    for i,o in enumerate(('cat/monday/1','cat/friday/2','cat/3','dog/monday/4','dog/a/b/5','dog/6','cat/7','dog/8')):
        (tmp_path/'s'/o).parent.mkdir(parents=True, exist_ok=True)
        tone(800, hz=300+100*i).save(tmp_path/'s'/f'{o}.wav')
    with pytest.warns(AudioWarning, match='a class is the first folder'): dls = L.from_folder(tmp_path/'s', valid_pct=.4, seed=0, **kw)
    with pytest.warns(AudioWarning, match='a class is the first folder'): df = read_labels(tmp_path/'s')
    assert list(dls.vocab)==sorted(set(df.label))==['cat','dog'] and len(df)==8
    shutil.copytree(tmp_path/'s', tmp_path/'t'/'train')
    shutil.copytree(tmp_path/'s', tmp_path/'t'/'valid')
    with pytest.warns(AudioWarning): dls = L.from_folder(tmp_path/'t', **kw)
    assert (len(dls.train_ds),len(dls.valid_ds),list(dls.vocab))==(8,8,['cat','dog'])

def test_loose_files(folder, tmp_path):
    shutil.copytree(folder/'train', tmp_path/'d')
    tone(999).save(tmp_path/'d'/'loose.wav')
    with pytest.warns(AudioWarning, match='1 sounds that lie in no class folder'): df = read_labels(tmp_path/'d')
    assert len(df)==16 and 'split' not in df and read_labels(folder).split.tolist()==['train']*16+['valid']*8

def test_names_of_other_systems(clips):
    nfc,nfd = 'caf\u00e9','cafe\u0301'
    (clips/nfd/'x').mkdir(parents=True)
    for i in range(8): tone(800, hz=300+50*i).save(clips/nfd/'x'/f'{i}{nfd}.wav')
    text = 'file,label\n' + ''.join(f'{nfc}\\x\\{i}{nfc}.wav,{"ab"[i%2]}\n' for i in range(8))
    assert vocab(clips, text)==read_labels(clips/'labels.csv').label.unique().tolist()==['a','b']

# Loaders of other kinds
def test_weighted_loaders(clips):
    db = DataBlock((AudioBlock(8000), CategoryBlock), get_y=lambda o: 'ab'[int(o.stem)%2], splitter=RandomSplitter(seed=0),
        batch_tfms=AudioToSpec(FrontEnd(8000, hop=10)))
    batches = [x for x,_ in db.weighted_dataloaders(get_audio_files(clips), [1.]*16, bs=4, num_workers=0).train]
    assert all(len(x)==len(x.lens)==4 for x in batches) and len({n for x in batches for n in x.lens.tolist()})>1
    wavs = tones(30, 20)
    assert next(iter(torch.utils.data.DataLoader(wavs, batch_size=2))).lens.tolist()==[30,20]
