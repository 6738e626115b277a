"Checks of the exercises: stubs and likely mistakes are turned down with words that help, right answers pass in any form"
import ast, json, math, re, shutil
from importlib import import_module
from itertools import groupby, product
from symtable import symtable
from types import SimpleNamespace

import numpy as np, pytest, torch
import torch.nn.functional as F

from fastaudio_lite.exercises import expect, numbers
from sync import root

# Taking a check out of its lesson
def _sources(nb, kind):
    cells = json.loads((root/'nbs'/f'{nb}.ipynb').read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type']==kind]

def _binds(node):
    "Names that a statement of a cell binds"
    if isinstance(node, (ast.FunctionDef,ast.ClassDef)): return {node.name}
    if isinstance(node, (ast.Import,ast.ImportFrom)): return {(a.asname or a.name).split('.')[0] for a in node.names}
    return {o.id for t in getattr(node, 'targets', []) for o in ast.walk(t) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}

def _globals(table):
    here = {o.get_name() for o in table.get_symbols() if o.is_referenced() and (table.get_type()=='module' or o.is_global())}
    return here.union(*map(_globals, table.get_children()))

def _uses(node): return _globals(symtable(ast.unparse(node), 'cell', 'exec'))

class Lesson:
    "Of the notebook `nb` only what the `names` need; what is `given` is not looked up there"
    def __init__(self, nb, names, **given):
        cells,mods = _sources(nb, 'code'),set()
        for o in cells: mods |= set(re.findall(r'^#\| *(?:default_exp|export) +(\S+)', o, re.M))
        cells = [o for o in cells if not re.match(r'#\| *(export|hide|default_exp)|[%!]', o)]
        nodes = [n for o in cells for n in ast.parse(o).body]
        stars = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.names[0].name=='*']
        need,todo = set(),set(names.split())
        while todo:
            need |= todo
            todo = set().union(*(_uses(n) for n in nodes if _binds(n) & need)) - need - given.keys()
        mine = [n for n in nodes if _binds(n) & need and not _binds(n) & given.keys()]
        self._nb,ns = nb,self.__dict__
        for m in mods: ns.update({k:v for k,v in vars(import_module(f'fastaudio_lite.{m}')).items() if k[:2]!='__'})
        for n in stars: exec(ast.unparse(n), ns)
        ns.update(given)
        for n in mine: exec(ast.unparse(n), ns)

    def stub(self, name):
        "The stub of the exercise `name`, with the call of its check: what a reader copies from the page"
        return re.search(rf'```python\n((?:def|class) {name}\b.*?)```', '\n'.join(_sources(self._nb, 'markdown')), re.S)[1]

def turned_down(f):
    "Does `f` say in words what is wrong?"
    with pytest.raises(AssertionError) as e: f()
    assert len(str(e.value))>20, str(e.value)

nothing = [lambda *_: None, lambda *_: ..., lambda *xs: xs[0]]

def _args(a): return a if isinstance(a, tuple) else (a,)

def tells(o, check, stub, right, wrong, nothing=nothing):
    "Does `check` tell the answers `right` from the answers `wrong`, the `stub`, and `nothing` at all?"
    check = getattr(o, check)
    turned_down(lambda: exec(o.stub(stub), dict(o.__dict__)))
    for a in [*nothing,*wrong]: turned_down(lambda: check(*_args(a)))
    for a in right: check(*_args(a))

def test_expect():
    "Forms are told apart no more, contents are"
    for got in [1,2.],(1,2),np.array([1,2]),torch.tensor([1.,2.], requires_grad=True),(o for o in (1,2)),map(torch.tensor, (1,2)): expect(got, [1,2], '')
    expect((o for o in 'ab'), np.array(['a','b']), '')
    for got in None,...,[1],[2,1],[1,2.1],[[1,2]],'12',['1','2'],[1,math.nan]: turned_down(lambda: expect(got, [1,2], 'in that order'))

def test_numbers():
    assert numbers(([o,torch.tensor(2)] for o in (1,3)), 'pairs', (2,2)).tolist()==[[1,2],[3,2]]
    for got in None,...,'12',['1'],[[1],[1,2]],[None,1],{}: turned_down(lambda: numbers(got, 'a row of numbers'))
    turned_down(lambda: numbers([1,2], 'three numbers', (3,)))

# 00 Audio
@pytest.fixture(scope='module')
def audio():
    from fastaudio_lite.audio import AudioTensor
    wav = AudioTensor(0.1*torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)), sr=8000)
    return Lesson('00_audio', 'check_fade fade check_set_rms set_rms check_halve halve', wav=wav)

def _faded(up, down=None):
    "A fade with the ramps `up(t)` and `down(t)`, `t` from 0 to 1"
    def _f(wav, ms):
        n,res = int(ms*wav.sr/1000),wav.clone()
        res[:,:n] *= up(torch.arange(n)/n)
        res[:,-n:] *= (down or up)(torch.arange(n)/n).flip(0)
        return res
    return _f

def test_fade(audio):
    def in_place(wav, ms): return wav.mul_(audio.fade(wav, ms))
    tells(audio, 'check_fade', 'fade', [audio.fade, _faded(lambda t: t), _faded(lambda t: (t*len(t)+1)/len(t))],
        [_faded(lambda t: t, torch.ones_like), _faded(lambda t: 0.5-0.5*torch.cos(math.pi*t)), _faded(torch.sqrt), in_place,
            lambda wav, ms: audio.fade(wav, 2*ms), lambda wav, ms: audio.fade(wav, ms).as_subclass(torch.Tensor)])

def test_set_rms(audio):
    def by_hand(wav, db):
        power = wav.double().square().mean()
        return wav if power==0 else (wav*(10**(db/10)/power).sqrt()).float()
    def nan(wav, db): return wav*10**((db-10*wav.square().mean().log10())/20)
    def peak(wav, db): return wav if not wav.any() else wav/wav.abs().max()*10**(db/20)
    tells(audio, 'check_set_rms', 'set_rms', [audio.set_rms, by_hand],
        [nan, peak, lambda wav, db: wav*10**(db/20), lambda wav, db: audio.set_rms(wav, db)[:,:100]])

def test_halve(audio):
    def fft(x): return (torch.fft.irfft(torch.fft.rfft(x)[:len(x)//4+1])/2).numpy()
    def pairs(x): return x.view(-1, 2).mean(1)
    tells(audio, 'check_halve', 'halve', [audio.halve, fft, lambda x: fft(x).tolist()],
        [lambda x: x[::2], pairs, lambda x: F.interpolate(x[None,None], scale_factor=0.5, mode='linear')[0,0], lambda x: fft(x)/2])

# 01 Data sets
@pytest.fixture(scope='module')
def datasets():
    from fastaudio_lite.datasets import digit_files
    return Lesson('01_datasets', 'check_shared shared check_folds group_folds check_better better', files=digit_files()[::3])

def test_shared(datasets):
    def by_loop(train_keys, test_keys): return sum(o in list(train_keys) for o in test_keys)/len(test_keys)
    def of_keys(train_keys, test_keys): return len(set(test_keys) & set(train_keys))/len(set(test_keys))
    tells(datasets, 'check_shared', 'shared', [datasets.shared, by_loop, lambda a, b: torch.tensor(by_loop(a, b))],
        [of_keys, lambda a, b: by_loop(b, a), lambda a, b: 1-by_loop(a, b)])

def test_group_folds(datasets):
    def by_size(keys, k, order=sorted):
        sizes,fold = [0]*k,{}
        for n,key in order([(-sum(keys==o), o) for o in dict.fromkeys(keys)]):
            fold[key] = sizes.index(min(sizes))
            sizes[fold[key]] -= n
        return (fold[o] for o in keys)
    tells(datasets, 'check_folds', 'group_folds', [datasets.group_folds, by_size, lambda *a: torch.tensor(list(by_size(*a)))],
        [lambda keys, k: np.arange(len(keys))%k, lambda keys, k: np.unique(keys, return_inverse=True)[1]%k,
            lambda keys, k: by_size(keys, k, list), lambda keys, k: [0]*len(keys), lambda *a: [o+1 for o in by_size(*a)]])

def test_better(datasets):
    tells(datasets, 'check_better', 'better', [datasets.better, lambda X: torch.tensor(X - X.mean(2, keepdims=True))],
        [lambda X: X - X.mean(0), lambda X: X/np.abs(X).max(), lambda X: datasets.better(X)[:100]])

# 02 Spectrograms
@pytest.fixture(scope='module')
def spectrogram():
    from fastaudio_lite.datasets import digit_files
    return Lesson('02_spectrogram', 'check_row2hz row2hz check_loudest_hz loudest_hz check_feats my_feats mean_feats', fns=digit_files()[::3])

def test_row2hz(spectrogram):
    tells(spectrogram, 'check_row2hz', 'row2hz', [spectrogram.row2hz, lambda *a: torch.tensor(spectrogram.row2hz(*a)),
        lambda k, sr, n_fft: np.fft.rfftfreq(n_fft, 1/sr)[k]],
        [lambda k, sr, n_fft: k*sr/2/n_fft, lambda k, sr, n_fft: k*sr/256, lambda k, sr, n_fft: k*sr/2/(n_fft//2+1)])

def test_loudest_hz(spectrogram):
    def of(n, win=None): return lambda wav: spectrogram.stft_power(wav, n, 80, win=win or n).argmax(-2)*8000/n
    tells(spectrogram, 'check_loudest_hz', 'loudest_hz', [spectrogram.loudest_hz, of(1024), lambda w: of(2048)(w)[0].tolist()],
        [of(256), of(4096), lambda w: of(1024)(w)/2, lambda w: of(1024)(w)[...,:-1]])

def test_my_feats(spectrogram):
    def slopes(spec):
        x = spec[0].numpy()
        t = np.linspace(-1, 1, x.shape[1]) if x.shape[1]>1 else np.zeros(1)
        return np.concatenate([x.mean(1), (x*t).mean(1)])
    def extremes(spec): return torch.cat([spec[0].amax(-1), spec[0].amin(-1), spec[0].mean(-1)])
    def in_order(spec): return F.interpolate(spec, 8).flatten()
    tells(spectrogram, 'check_feats', 'my_feats', [spectrogram.my_feats, slopes, lambda s: in_order(s).tolist()],
        [spectrogram.mean_feats, spectrogram.mean_std_feats, extremes, lambda s: in_order(s.sort(-1).values), lambda s: s[0].T])

# 03 Augmentation
@pytest.fixture(scope='module')
def augment(): return Lesson('03_augment', 'check_crush crush check_babble Babble check_fair FairMixUp')

def test_crush(augment):
    def grid(x, bits): return np.rint(x.numpy()*2**(bits-1))/2**(bits-1)
    tells(augment, 'check_crush', 'crush', [augment.crush, grid, lambda x, bits: (x*2**(bits-1)).add(0.5).floor()/2**(bits-1)],
        [lambda x, bits: (x*2**(bits-1)).floor()/2**(bits-1), lambda x, bits: grid(x, bits+1), lambda x, bits: (x*2**(bits-1)).round()])

def _babble(augment, partner, ratio=None):
    "Babble with a `partner(x)` for each clip, added at the power that `ratio(x, o, n)` gives"
    class Babble(augment.Babble):
        def aug(self, x, n, src):
            o,m = partner(x),torch.arange(x.shape[-1]) < n.view(-1,1,1)
            power = ratio or (lambda x, o, n: ((x*m).square().sum(-1)/(o*m).square().sum(-1))[...,None])
            return x + o*m*(power(x, o, n)/10**(self.draw(x, self.snr)/10)).sqrt()
    return Babble

def test_babble(augment):
    def next_one(x): return x.roll(1, 0)
    def means(x, o, n): return x.square().mean(-1, keepdim=True)/o.square().mean(-1, keepdim=True)
    class SumOfAll(_babble(augment, lambda x: x.sum(0, keepdim=True)-x)): pass
    class One(augment.Babble):
        def draw(self, x, r): return torch.full((len(x),1,1), sum(r)/2)
    def giving(res): return type('Empty', (augment.Babble,), dict(aug=lambda self, x, n, src: res and x))
    tells(augment, 'check_babble', 'Babble', [augment.Babble, _babble(augment, next_one), SumOfAll],
        [giving(None), giving(True), _babble(augment, lambda x: x), _babble(augment, torch.randn_like), One,
            _babble(augment, next_one, means), _babble(augment, next_one, lambda x, o, n: torch.tensor(1.))], nothing=[])

def test_fair(augment):
    class ByLoop(augment.AudioMixUp):
        def mix(self, x, o, n, m, lam):
            w = [1/(1+(a[:,:i].std(correction=0)*(1-l))/(b[:,:j].std(correction=0)*l)) for a,b,i,j,l in zip(x, o, n, m, lam)]
            y = [(p*a+(1-p)*b)/math.hypot(p, 1-p) for p,a,b in zip(w, x, o)]
            return torch.stack(y), torch.maximum(n, m), lam
    def but(f): return type('Wrong', (augment.FairMixUp,), dict(mix=lambda self, *a: f(augment.FairMixUp().mix(*a), *a)))
    def whole(self, x, o, n, m, lam): return augment.FairMixUp.mix(self, x, o, n*0+1000, m*0+1000, lam)
    tells(augment, 'check_fair', 'FairMixUp', [augment.FairMixUp, but(lambda res, *a: list(res))],
        [augment.AudioMixUp, but(lambda *a: None), but(lambda res, *a: (2*res[0],*res[1:])), but(lambda res, x, *a: (x,*res[1:])),
            type('Whole', (augment.FairMixUp,), dict(mix=whole))], nothing=[])

# 04 Data
@pytest.fixture(scope='module')
def data(): return Lesson('04_data', 'check_repeat repeat_collate check_buckets buckets check_loudest LoudestCrop')

def test_repeat(data):
    def by_index(samples):
        n = max(o.n_samples for o,_ in samples)
        x = torch.stack([data.plain(o)[:,torch.arange(n) % o.n_samples] for o,_ in samples])
        return data.AudioTensor(x, sr=8000, lens=torch.full((len(x),), n)),torch.stack([y for _,y in samples])
    def no_lens(samples): return [data.AudioTensor(by_index(samples)[0], sr=8000, lens=None),by_index(samples)[1].tolist()]
    def old_lens(samples): return data.AudioTensor(by_index(samples)[0], sr=8000, lens=torch.tensor([o.n_samples for o,_ in samples])),by_index(samples)[1]
    def twice(samples): return data.audio_collate([(o.repeat(1, 2),y) for o,y in samples])
    tells(data, 'check_repeat', 'repeat_collate', [data.repeat_collate, by_index, no_lens],
        [data.audio_collate, twice, old_lens, lambda s: by_index(s)[0], lambda s: (by_index(s)[0],[0]*len(s))])

def test_buckets(data):
    def pools(durs, bs, rng):
        for o in np.array_split(np.argsort(durs), 5):
            for i in range(0, len(o := rng.permutation(o)), bs): yield o[i:i+bs].tolist()
    def groups(durs, bs, rng):
        order = np.roll(np.argsort(durs), rng.integers(1, bs))
        return [torch.tensor(o) for o in np.array_split(order, -(-len(durs)//bs))]
    def fixed(durs, bs, rng):
        rows = np.array_split(np.argsort(durs), -(-len(durs)//bs))
        return [rows[i] for i in rng.permutation(len(rows))]
    def ordered(durs, bs, rng): return np.array_split(np.argsort(durs), -(-len(durs)//bs))
    def shuffled(durs, bs, rng): return np.array_split(rng.permutation(len(durs)), -(-len(durs)//bs))
    tells(data, 'check_buckets', 'buckets', [data.buckets, groups, pools],
        [fixed, ordered, shuffled, lambda d, bs, rng: rng.permutation(len(d)).reshape(-1, 1), lambda *a: data.buckets(*a)[:-1]])

def test_loudest(data):
    def crop(start):
        class Crop(data.DisplayedTransform):
            def __init__(self, dur): self.dur = dur
            def encodes(self, wav:data.AudioTensor):
                n = data.dur2n(self.dur, wav.sr)
                i = start(wav, n) if wav.n_samples>n else 0
                return wav if i is None else wav[...,i:i+n]
        return Crop
    def conv(wav, n): return int(F.conv1d(data.plain(wav)[None].double()**2, torch.ones(1, 1, n).double()).argmax())
    def unfold(wav, n): return int(wav.unfold(-1, n, 1).square().sum(-1).argmax())
    def middle(wav, n): return (wav.n_samples-n)//2
    def peak(wav, n): return max(int(data.plain(wav).abs().argmax())-n//2, 0)
    tells(data, 'check_loudest', 'LoudestCrop', [data.LoudestCrop, crop(conv), crop(unfold)],
        [crop(middle), crop(peak), crop(lambda w, n: None), crop(lambda w, n: 0)], nothing=[])

# 05 Classifier
class Tones:
    "In place of a classifier: label `i` is a tone of `500+100*i` Hz; asks sounds for it in windows of half a second, as the lesson's does"
    def tone(self, i, sr=8000, dur=0.4): return torch.sin(2*math.pi*(500+100*int(i))*torch.arange(int(sr*dur))/sr)[None]
    def predict(self, wav):
        probs = self._probs(wav)
        n = wav.sr//2
        pieces = [wav[:,i:i+n] for i in range(0, wav.shape[-1]-n+1, n//2)] if wav.shape[-1]>n else []
        return SimpleNamespace(label=max(probs, key=probs.get), probs=probs, windows=[dict(label=max(p := self._probs(o), key=p.get)) for o in pieces])
    def _probs(self, wav):
        x = wav.as_subclass(torch.Tensor)[0]
        if not x.any(): return dict.fromkeys('3012456789', 0.1)
        hz = torch.fft.rfft(x).abs().argmax().item()*wav.sr/len(x)
        return {str(i):math.exp(-abs(hz-510-100*i)/50) for i in range(10)}

@pytest.fixture(scope='module')
def classifier():
    from fastaudio_lite.audio import AudioTensor
    clf = Tones()
    def sound(o, sr=8000): return AudioTensor(clf.tone(o, sr), sr=sr)
    return Lesson('05_classifier', 'check_top2 top2 check_noise check_row read_row', clf=clf, files=[sound(i, 8000) for i in '472'],
        eight=list('01234678'), digit_label=str, load_audio=sound, snrs=[0], curve=[0.5], noisy=lambda snr: [snr]*200)

def test_top2(classifier):
    def by_torch(clf, sound):
        p = clf.predict(sound).probs
        return tuple(list(p)[i] for i in torch.tensor(list(p.values())).topk(2).indices)
    tells(classifier, 'check_top2', 'top2', [classifier.top2, by_torch, lambda *a: iter(by_torch(*a))],
        [lambda *a: by_torch(*a)[::-1], lambda *a: by_torch(*a)[:1], lambda clf, o: sorted(clf.predict(o).probs)[:2],
            lambda clf, o: sorted(clf.predict(o).probs.values())[-2:]])

def test_noise(classifier):
    def acc(at_0, deaf=0.1): return lambda clips: at_0 if clips[0]==0 else deaf
    tells(classifier, 'check_noise', 'noise_acc', [acc(0.7), acc(torch.tensor(0.7)), acc(np.float32(0.9), 0.2)],
        [acc(0.5), acc(0.9, 0.9), acc(70., 10.), acc(torch.ones(200))])

def test_row(classifier):
    def by_groups(clf, row):
        loud = row[0].abs().as_subclass(torch.Tensor)>1e-3
        at = loud.nonzero()[:,0]
        for o in np.split(at.numpy(), np.flatnonzero(np.diff(at)>row.sr/5)+1): yield int(clf.predict(row[:,o[0]:o[-1]+1]).label)
    def windows(clf, row): return [o['label'] for o in clf.predict(row).windows]
    def no_twice(clf, row): return [k for k,_ in groupby(windows(clf, row))]
    tells(classifier, 'check_row', 'read_row', [classifier.read_row, by_groups, lambda *a: tuple(by_groups(*a))],
        [lambda *_: list('0123456789'), lambda *_: list('01234678'), windows, no_twice, lambda clf, row: clf.predict(row).label])

# 06 Export
@pytest.fixture(scope='module')
def export(tmp_path_factory):
    import safetensors.torch
    from fastaudio_lite.all import AudioTensor, Classifier, save_pretrained
    torch.manual_seed(0)
    clf = Classifier.from_config(dict(arch='AudioCNN', n_in=1, vocab=list('0123456789'), dur=0.5, multi=False, front_end=dict(sr=8000, n_mels=32)))
    room,clip = tmp_path_factory.mktemp('export'),AudioTensor(torch.randn(1, 4000), sr=8000)
    folder = save_pretrained(clf, room/'digits')
    raw = (folder/'model.safetensors').read_bytes()
    def weights(c): return torch.cat([v.flatten() for k,v in c.state_dict().items() if k.startswith('model') and v.ndim>1])
    def acc_of(c): return 1-((weights(c)-weights(clf)).norm()/weights(clf).norm()).item()
    return Lesson('06_export', 'check_n_numbers n_numbers check_rename rename check_pack8 pack8 unpack8', room=room, clip=clip, folder=folder, clf=clf,
        raw=raw, n=int.from_bytes(raw[:8], 'little'), theirs=safetensors.torch.load(raw), acc_of=acc_of, kept={'all of it':1.})

def test_n_numbers(export):
    def head(fn): return json.loads(fn.read_bytes()[8:])
    def by_shape(fn): return torch.tensor(sum(math.prod(v['shape']) for k,v in head(fn).items() if k!='__metadata__'))
    def ends(fn): return max(v['data_offsets'][1] for k,v in head(fn).items() if k!='__metadata__')
    tells(export, 'check_n_numbers', 'n_numbers', [export.n_numbers, by_shape],
        [ends, lambda fn: ends(fn)/4, lambda fn: len(head(fn)), lambda fn: fn.stat().st_size//4])

def test_rename(export):
    from fastaudio_lite.all import Classifier, from_pretrained, save_pretrained
    def anew(folder, names, dest):
        c = from_pretrained(folder)
        new = Classifier.from_config(dict(c.config(), vocab=list(map(names.get, c.vocab))))
        new.load_state_dict(c.state_dict())
        save_pretrained(new, dest)
    def editor(folder, names, dest):
        shutil.copytree(folder, dest)
        cfg = (dest/'config.json').read_text()
        for a,b in names.items(): cfg = cfg.replace(f'"{a}"', f'"{b}"')
        (dest/'config.json').write_text(cfg)
    def by_alphabet(folder, names, dest):
        c = from_pretrained(folder)
        c.vocab = sorted(names.values())
        save_pretrained(c, dest)
    def old_names(folder, names, dest): shutil.copytree(folder, dest)
    tells(export, 'check_rename', 'rename', [export.rename, anew], [editor, by_alphabet, old_names])

def test_pack8(export):
    from safetensors.torch import load_file, save_file
    def pack(clf, fn, bits=8, scales=lambda v: v.flatten(1).abs().amax(1).view(-1, *[1]*(v.ndim-1))/127):
        big = {k:v for k,v in clf.state_dict().items() if v.ndim>1 and k.startswith('model')}
        res = {k+'|':(v/scales(v)).round().to(torch.int8).contiguous() for k,v in big.items()} | {k+'/':scales(v) for k,v in big.items()}
        save_file(res | {k:v.contiguous() for k,v in clf.state_dict().items() if k not in big}, fn)
    def unpack(fn):
        d = load_file(fn)
        return {k.rstrip('|'):v*d[k[:-1]+'/'] if k[-1]=='|' else v for k,v in d.items() if k[-1]!='/'}
    def half(clf, fn): save_file({k:v.half().contiguous() for k,v in clf.state_dict().items()}, fn)
    def coarse(clf, fn): pack(clf, fn, scales=lambda v: v.abs().max()/3)
    def raw_bytes(fn): return {k.rstrip('|'):v for k,v in load_file(fn).items() if k[-1]!='/'}
    tells(export, 'check_pack8', 'pack8', [(export.pack8, export.unpack8), (pack, unpack)],
        [(half, load_file), (coarse, unpack), (pack, raw_bytes), (pack, load_file), (pack, lambda fn: None), (lambda *_: None, unpack)], nothing=[])

# 07 Coming from fastaudio
@pytest.fixture(scope='module')
def migrate(): return Lesson('07_migrate', 'check_loaders own_loaders check_rows rows_lost check_loss LoseBoth to_spec')

def test_own_loaders(migrate):
    files,ours,aug = [o for o in migrate.files if migrate.digit_label(o) in '12'][::8],migrate.ours,migrate.augment
    def loaders(*tfms):
        block = migrate.DataBlock((migrate.AudioBlock, migrate.CategoryBlock), get_y=migrate.digit_label, batch_tfms=list(tfms))
        return block.dataloaders(files, bs=8, num_workers=0)
    spec,masks = ours.AudioToSpec(ours.FrontEnd(sr=16000, n_mels=40)),[aug.FreqMask(),aug.TimeMask()]
    tells(migrate, 'check_loaders', 'own_loaders', [migrate.own_loaders(files), loaders(*masks, spec)],
        [None, ..., files, loaders(spec), loaders(migrate.to_spec), loaders(ours.AudioToSpec(ours.FrontEnd(sr=16000, n_mels=64)), *masks)], nothing=[])

def test_rows_lost(migrate):
    def by_loop(sr): return torch.tensor(sum(not o.any() for o in migrate.mel_filters(sr, 1024, 128, 50., 8000., None, True)))
    def above(sr): return sum(o>sr/2 for o in np.linspace(50, 8000, 128))
    tells(migrate, 'check_rows', 'rows_lost', [migrate.rows_lost, by_loop], [above, lambda sr: 31, lambda sr: 128-by_loop(sr)])

def test_loss(migrate):
    def made(aug): return type('Lose', (migrate._AnyTfm,), dict(aug=lambda self, x, n, src: aug(x)))()
    def by_product(x): return x*(torch.rand_like(x)>0.5)
    def columns(x): return x*(torch.rand(x.shape[-1])>0.5)
    def first_half(x): return torch.cat([x[...,:x.shape[-1]//2]*0, x[...,x.shape[-1]//2:]], -1)
    def same(x): return x*(torch.arange(x.numel()).view(x.shape)%2)
    def in_place(x): return migrate.sg.as_subclass(torch.Tensor).mul_(torch.rand_like(x)>0.5)
    tells(migrate, 'check_loss', 'LoseBoth', [migrate.LoseBoth(), made(by_product)],
        [None, ..., made(lambda x: x), made(F.dropout), made(columns), made(first_half), made(same), made(lambda x: None), by_product], nothing=[])

# 08 Scale
@pytest.fixture(scope='module')
def scale(): return Lesson('08_scale', 'check_steps steps check_merge merge check_share share')

def test_steps(scale):
    def by_pieces(n, bs, world): return torch.tensor(max(len(range(0, n-bs*world+1, bs*world)), 1))
    tells(scale, 'check_steps', 'steps', [scale.steps, by_pieces],
        [lambda n, bs, world: -(-n//(bs*world)), lambda n, bs, world: n//(bs*world), lambda n, bs, world: max(n//bs, 1)])

def test_merge(scale):
    def by_squares(stats):
        n,m,v = (np.array([float(o) for o in c]) for c in zip(*stats))
        mean = (n*m).sum()/n.sum()
        return [n.sum(),mean,(n*(v+m**2)).sum()/n.sum()-mean**2]
    def in_turn(stats):
        n,m,v = stats[0]
        for k,o,w in stats[1:]: n,m,v = n+k,(n*m+k*o)/(n+k),(n*v+k*w)/(n+k) + n*k*(m-o)**2/(n+k)**2
        return torch.stack([torch.tensor(n),m,v])
    def of_means(stats): return sum(o[0] for o in stats),np.mean([o[1] for o in stats]),np.mean([o[2] for o in stats])
    def within(stats): return by_squares(stats)[:2]+[by_squares([(n,0,v) for n,_,v in stats])[2]]
    tells(scale, 'check_merge', 'merge', [scale.merge, by_squares, in_turn],
        [of_means, within, lambda s: by_squares(s)[:2], lambda s: by_squares(s)[1:]+by_squares(s)[:1]])

def test_share(scale):
    def by_cuts(lens, world): return (torch.tensor(o) for o in np.array_split(np.argsort(lens), world))
    tells(scale, 'check_share', 'share', [scale.share, by_cuts, lambda *a: [o.tolist() for o in by_cuts(*a)][::-1]],
        [lambda lens, world: np.arange(len(lens)).reshape(world, -1), lambda lens, world: np.argsort(lens).reshape(-1, world).T,
            lambda lens, world: np.sort(lens).reshape(world, -1), lambda lens, world: np.argsort(lens).reshape(-1, world)])

# 09 Voices
@pytest.fixture(scope='module')
def voices(): return Lesson('09_voices', 'check_pair pair check_hard hard check_mic lost log_probs_of right_of')

def test_pair(voices):
    def by_product(lp, truth, which):
        said = np.exp(sum(lp[:,i].numpy() for i in which)).argmax(-1)
        return np.mean(said==truth.numpy())
    def of_probs(lp, truth, which): return (lp[:,which].exp().mean(1).argmax(-1)==truth).float().mean()
    def vote(lp, truth, which): return (lp[:,which].argmax(-1).mode(1)[0]==truth).float().mean()
    tells(voices, 'check_pair', 'pair', [voices.pair, by_product, lambda *a: torch.tensor(by_product(*a))],
        [of_probs, vote, lambda lp, t, which: by_product(lp, t, [0,1,2]), lambda *a: 4*by_product(*a), lambda lp, t, w: by_product(lp, t, w[:1])])

def test_hard(voices):
    def by_loop(T, lens, k):
        res = np.zeros((len(lens),k,T))
        for b,n in enumerate(lens.tolist()):
            for i,o in enumerate(np.array_split(np.arange(n), k)): res[b,i,o] = 1/len(o)
        return res
    tells(voices, 'check_hard', 'hard', [voices.hard, by_loop, lambda *a: by_loop(*a).tolist()],
        [voices.stretches, lambda *a: by_loop(*a)>0, lambda T, lens, k: by_loop(T, lens*0+T, k), lambda *a: by_loop(*a).transpose(0, 2, 1)])

def test_mic(voices):
    def by_clip(learn, tilt=torch.linspace(-1.5, 1.5, 32), order=('cnn','stretch','vote')):
        diff = []
        with torch.no_grad():
            for x,y in learn.dls.valid:
                old,new = (learn.model.members(o).argmax(-1)==y[:,None] for o in (x, x+tilt[:,None]))
                diff += (new.int()-old.int()).tolist()
        return dict(zip(order, np.mean(diff, 0)))
    tells(voices, 'check_mic', 'lost', [voices.lost, by_clip],
        [lambda learn: by_clip(learn, torch.linspace(1.5, -1.5, 32)), lambda learn: by_clip(learn, torch.full((32,), 1.5)),
            lambda learn: {k:-v for k,v in by_clip(learn).items()}, lambda learn: dict.fromkeys(('cnn','stretch','vote'), 0.),
            lambda learn: by_clip(learn, order=('vote','stretch','cnn')), lambda learn: list(by_clip(learn).values())])

# 10 Text
@pytest.fixture(scope='module')
def text():
    texts = ['one two three','rub out','four five','enter six','a b c','go'],['one too three','rub out','five','enter sex','a b c','stop go']
    return Lesson('10_text', 'check_ser ser check_row edits_row check_alphabet lean wer', refs=texts[0], hyps=texts[1], ok=np.array([0,1,0,0,1,0]))

def test_ser(text):
    tells(text, 'check_ser', 'ser', [text.ser, lambda r, h: sum(a!=b for a,b in zip(r, h))/len(r), lambda r, h: torch.tensor([a!=b for a,b in zip(r, h)]).float().mean()],
        [text.wer, lambda r, h: 1-text.ser(r, h), lambda r, h: sum(a!=b for a,b in zip(r, h))])

def test_edits_row(text):
    def two_rows(a, b):
        old = list(range(len(b)+1))
        for i,x in enumerate(a, 1):
            new = [i]
            for j,y in enumerate(b, 1): new.append(min(old[j]+1, new[-1]+1, old[j-1]+(x!=y)))
            old = new
        return np.int64(old[-1])
    def table(a, b):
        d = [[i+j for j in range(len(b)+1)] for i in range(len(a)+1)]
        for i,x in enumerate(a, 1):
            for j,y in enumerate(b, 1): d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+(x!=y))
        return d[-1][-1]
    def places(a, b): return sum(x!=y for x,y in zip(a, b))+abs(len(a)-len(b))
    def no_swap(a, b): return len(a)+len(b)-2*sum(o in b for o in a)
    tells(text, 'check_row', 'edits_row', [text.edits_row, two_rows], [table, places, no_swap, lambda a, b: two_rows(a, b)/max(len(a), 1)])

def test_lean(text):
    lean,Tokens = text.lean(text.train.text),text.Tokens
    tells(text, 'check_alphabet', 'lean', [lean, Tokens(lean.vocab[:-1])],
        [None, ..., lean.vocab, text.alphabet, Tokens.subwords(text.train.text, 200), Tokens([o for o in lean.vocab if len(o)>1 or o!='e'])], nothing=[])

# 11 Hidden Markov models
@pytest.fixture(scope='module')
def hmm():
    "A recognizer of two made-up words, each a row of tones, and strings of them"
    from fastaudio_lite.asr.hmm import HMMDigits
    from fastaudio_lite.audio import AudioTensor
    g = torch.Generator().manual_seed(0)
    tones = dict(a=(300,900,1800), b=(2200,1200,500))
    def say(text):
        x = torch.cat([torch.sin(2*math.pi*hz*torch.arange(dict(a=600, b=1800)[w])/8000) for w in text.split() for hz in tones[w]])
        return AudioTensor((0.3*x + 0.003*torch.randn(len(x), generator=g))[None], sr=8000)
    texts = ['a','b','a b','b a','a a','b b','a b b','b a a']
    reader = HMMDigits(n_states=3, n_mix=1, warps=(1.,), n_mels=16, n_mfcc=6, deltas=0, penalty=5.)
    reader.fit(list(map(say, texts[:6]*2)), texts[:6]*2)
    few = list(map(say, texts[:2]*2))
    names = {id(o):t for o,t in zip(few, texts[:2]*2)}
    return Lesson('11_hmm', 'check_paths n_paths check_dur word_dur check_force force', reader=reader, rec=reader, texts=texts[4:],
        sounds=list(map(say, texts[4:])), few=few, digit_word=lambda o: names[id(o)])

def test_n_paths(hmm):
    def by_table(T, S):
        n = [1]+[0]*(S-1)
        for _ in range(T-1): n = [n[0],*(a+b for a,b in zip(n, n[1:]))]
        return n[-1]
    tells(hmm, 'check_paths', 'n_paths', [hmm.n_paths, by_table, lambda T, S: torch.tensor(float(by_table(T, S)))],
        [lambda T, S: S**T, lambda T, S: math.comb(T, S), lambda T, S: by_table(T+1, S), lambda T, S: math.log(by_table(T, S) or 1)])

def test_word_dur(hmm):
    def by_loop(hmm, w): return np.sum([1/(1-float(hmm.stay[i])) for i in range(w*hmm.n_states, w*hmm.n_states+hmm.n_states)])
    tells(hmm, 'check_dur', 'word_dur', [hmm.word_dur, by_loop, lambda *a: torch.tensor(by_loop(*a))],
        [lambda hmm, w: hmm.stay[3*w:3*w+3].sum(), lambda hmm, w: by_loop(hmm, 0), lambda hmm, w: (1/hmm.stay[3*w:3*w+3]).sum(),
            lambda hmm, w: (hmm.stay/(1-hmm.stay))[3*w:3*w+3].sum(), lambda hmm, w: by_loop(hmm, w)/100])

def test_force(hmm):
    def even(rec, sound, text):
        n = len(rec.features([sound])[0])/len(text.split())
        return [(i*n,(i+1)*n) for i in range(len(text.split()))]
    def heard(rec, sound, text): return [((a-rec._clip(sound)[1])*100,(b-rec._clip(sound)[1])*100) for a,b in ((o.start, o.end) for o in rec.spans(sound))]
    def in_s(*a): return np.array(hmm.force(*a))/100
    tells(hmm, 'check_force', 'force', [hmm.force, lambda *a: torch.tensor(hmm.force(*a)), lambda *a: ([a,b+1] for a,b in hmm.force(*a))],
        [even, heard, in_s, lambda *a: hmm.force(*a)[::-1], lambda *a: [a for a,_ in hmm.force(*a)]])

# 12 CTC
@pytest.fixture(scope='module')
def ctc():
    from fastaudio_lite.text import Tokens
    return Lesson('12_ctc', 'check_most_likely most_likely_text check_soft_share soft_share check_second_opinion second_opinion forward_by_hand',
        tokens=Tokens.letters(['one two three']))

def test_most_likely(ctc):
    def all_ways(lp, read=ctc.collapse, add=lambda a, b: a+b):
        res = {}
        for o in product(range(lp.shape[1]), repeat=len(lp)):
            p = math.exp(sum(lp[t,k].item() for t,k in enumerate(o)))
            res[tuple(read(o))] = add(res.get(tuple(read(o)), 0), p)
        return max(res, key=res.get)
    def greedy(lp): return ctc.collapse(lp.argmax(-1).tolist())
    tells(ctc, 'check_most_likely', 'most_likely_text', [ctc.most_likely_text, all_ways, lambda lp: torch.tensor(all_ways(lp)), lambda lp: iter(all_ways(lp))],
        [greedy, lambda lp: all_ways(lp, add=max), lambda lp: all_ways(lp, lambda o: [k for k in o if k]), lambda lp: all_ways(lp)[::-1], lambda lp: [1]])

def test_soft_share(ctc):
    def by_grad(lp, ids):
        lp = torch.stack([lp[:,0].double()]+[lp[:,k].double() for k in ids], 1).requires_grad_() # A column for each token, equal or not
        z,a = [o for i in range(len(ids)) for o in (0,i+1)]+[0],None
        for t in range(len(lp)):
            old = a
            a = [lp[t,k] + (torch.stack([old[s-d] for d in (0,1,2) if s>=d and (d<2 or (k and ids[k-1]!=(ids[k-2] if k>1 else 0)))]).logsumexp(0)
                if t else torch.tensor(0. if s<2 else -1e9)) for s,k in enumerate(z)]
        torch.logaddexp(a[-1], a[-2]).backward()
        return lp.grad[:,1:].numpy()
    def shares(lp, ids):
        ab = ctc.forward_by_hand(lp, ids)*ctc.backward_by_hand(lp, ids)
        return ab/ab.sum(1, keepdim=True)
    tells(ctc, 'check_soft_share', 'soft_share', [ctc.soft_share, by_grad, lambda *a: ctc.soft_share(*a).tolist()],
        [shares, lambda lp, ids: lp[:,ids].exp(), lambda lp, ids: lp[:,ids].softmax(-1), lambda lp, ids: shares(lp, ids)[:,1::2].T,
            lambda lp, ids: ctc.forward_by_hand(lp, ids)[:,1::2], lambda lp, ids: shares(lp, ids)[:,1::2]/shares(lp, ids)[:,1::2].sum(1, keepdim=True)])

def test_second_opinion(ctc):
    def lps(learn, wav): return torch.stack([ctc.log_probs(learn, ctc.load_audio(wav)*g).as_subclass(torch.Tensor)[0] for g in (2,1,.5)])
    def said(lp): return ctc.tokens.decode(ctc.collapse(lp.argmax(-1).tolist()))
    tells(ctc, 'check_second_opinion', 'second_opinion', [ctc.second_opinion, lambda *a: said(lps(*a).mean(0)), lambda *a: said(lps(*a).numpy().sum(0))],
        [lambda *a: said(lps(*a)[1]), lambda *a: said(lps(*a).exp().mean(0)), lambda *a: said(lps(*a).amax(0)), lambda *a: said(lps(*a)[0])])

# 13 Decoding
@pytest.fixture(scope='module')
def decode():
    from fastaudio_lite.text import Tokens
    digits = 'zero one two three four five six seven eight nine'.split()
    tokens = Tokens.letters(digits)
    said = ['one two','three','zero zero five']
    def decoder(*args, **kw): return lambda lp: [SimpleNamespace(text=t, score=p) for p,t in enumerate(said)]
    return Lesson('13_decode', 'check_oracle oracle check_mixed mixed check_least_regret least_regret errors wer', tokens=tokens, lps=[None]*3, said=said, BeamDecoder=decoder,
        times=['one two','one three','zero zero','zero five']*4, lm=None, alpha=0., beta=0., digits=digits)

def test_oracle(decode):
    def by_loop(hyps, ref):
        best = None
        for h in hyps:
            n = decode.errors(h.text.split(), ref.split())
            if best is None or n<best[0]: best = n,h.text
        return best[1]
    tells(decode, 'check_oracle', 'oracle', [decode.oracle, by_loop],
        [lambda hyps, ref: hyps[0].text, lambda hyps, ref: min((h.text for h in hyps), key=lambda t: decode.errors(t, ref)), lambda hyps, ref: ref,
            lambda hyps, ref: max((h.text for h in hyps), key=lambda t: decode.errors(t.split(), ref.split()))])

def test_mixed(decode):
    def words(text): return ['<s>',*text.split(),'</s>']
    def pairs(a, b, text): return [[m.logp(o, words(text)[:i]) for m in (a,b)] for i,o in enumerate(words(text)) if i]
    def each(mix): return lambda a, b, w: lambda text: sum(mix(p, q, w) for p,q in pairs(a, b, text))
    right = each(lambda p, q, w: np.logaddexp(p+math.log(w or 1e-300), q+math.log((1-w) or 1e-300)))
    def whole(a, b, w): return lambda text: math.log(w*math.exp(a.score(text))+(1-w)*math.exp(b.score(text)))
    tells(decode, 'check_mixed', 'mixed', [decode.mixed, right, lambda *a: lambda t: torch.tensor(right(*a)(t))],
        [each(lambda p, q, w: w*p+(1-w)*q), whole, lambda a, b, w: right(b, a, w), lambda *a: right(*a)('one two'),
            lambda *a: lambda t: math.exp(right(*a)(t)), lambda a, b, w: lambda t: right(a, b, w)(t)-math.log(w*.5+(1-w)*.1)])

def test_least_regret(decode):
    def pick(key): return lambda hyps: min(hyps, key=lambda h: key(h, hyps)).text
    def errors(h, o): return decode.errors(h.text.split(), o.text.split())
    right = pick(lambda h, hyps: sum(math.exp(o.score)*errors(h, o) for o in hyps))
    unweighted = pick(lambda h, hyps: sum(errors(h, o) for o in hyps))
    letters = pick(lambda h, hyps: sum(math.exp(o.score)*decode.errors(h.text, o.text) for o in hyps))
    logs = pick(lambda h, hyps: sum(o.score*errors(h, o) for o in hyps))
    tells(decode, 'check_least_regret', 'least_regret', [decode.least_regret, right], [lambda hyps: hyps[0].text, unweighted, letters, logs])

# 17 Transcribing
@pytest.fixture(scope='module')
def transcribe(): return Lesson('17_transcribe', 'check_talk_share talk_share check_find find check_careful careful')

def test_talk_share(transcribe):
    tells(transcribe, 'check_talk_share', 'talk_share', [transcribe.talk_share, lambda o: torch.tensor([w.end-w.start for w in o.words]).sum()/o.dur],
        [lambda o: len(o.words)/o.dur, lambda o: o.words[-1].end-o.words[0].start if o.words else 0, lambda o: sum(w.end-w.start for w in o.words)])

def test_find(transcribe):
    tells(transcribe, 'check_find', 'find', [transcribe.find, lambda o, word: (w.start for w in o.words if w.text==word), lambda o, word: np.array(transcribe.find(o, word))],
        [lambda o, word: [w.start for w in o.words if word in w.text], lambda o, word: [i for i,w in enumerate(o.words) if w.text==word],
            lambda o, word: transcribe.find(o, word)[:1], lambda o, word: [(w.start,w.end) for w in o.words if w.text==word]])

def test_careful(transcribe):
    def by_loop(o, p):
        res = ''
        for w in o.words: res += ' '+('...' if w.prob<p else w.text)
        return res.strip()
    tells(transcribe, 'check_careful', 'careful', [transcribe.careful, by_loop],
        [lambda o, p: ' '.join(w.text for w in o.words if w.prob>=p), lambda o, p: ' '.join(w.text if w.prob>p else '...' for w in o.words),
            lambda o, p: o.text if o.prob>=p else '...', lambda o, p: by_loop(o, p).split()])

def test_dicts_are_compared():
    expect({'a':.1+.2, 'b':[1,2]}, {'a':.3, 'b':(1,2)}, 'alike')
    for o in {'a':.4, 'b':[1,2]}, {'a':.3}:
        with pytest.raises(AssertionError, match='why not'): expect(o, {'a':.3, 'b':[1,2]}, 'why not')
