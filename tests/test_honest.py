"Every figure is of sounds that were held out, and nothing is learned from them: not by networks, statistics, alphabets, language models"
import inspect, json, re
from collections import namedtuple
from functools import partial
from pathlib import Path
from shutil import copy
from zlib import crc32

import numpy as np, pytest, soundfile as sf, torch
from fastai.callback.schedule import Learner

from fastaudio_lite import benchmark, text
from fastaudio_lite.asr import hmm, transcribe
from fastaudio_lite.asr.decode import NGram
from fastaudio_lite.asr.hmm import HMMDigits
from fastaudio_lite.asr.transcribe import Transcriber, Transcript
from fastaudio_lite.audio import AudioTensor, load_audio
from fastaudio_lite.benchmark import *
from fastaudio_lite.classifier import AudioCNN
from fastaudio_lite.cli import commands, main
from fastaudio_lite.data import find_front_end
from fastaudio_lite.datasets import digit_speaker, is_digit_test
from fastaudio_lite.spectrogram import hz2mel, mel2hz
from fastaudio_lite.text import digit_words, read_an4
from fastaudio_lite.voices import Committee

# A small world: tones whose pitch says what is in the recording
def _pitch(k, sr): return float(mel2hz((.2+.2*k)*hz2mel(sr/2)))

def _tone(fn, f, sr, dur, again):
    "A tone of `f` Hz in noise of its own; of other noise where it is recorded `again`"
    fn.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(crc32(f'{fn.name}{again}'.encode())).normal(0, .003, int(dur*sr))
    sf.write(fn, .3*np.sin(2*np.pi*f*np.arange(len(noise))/sr) + noise, sr)

def _digits(path, wrong, again):
    "FSDD's naming, `path/3_ann_7.wav`; the wrong ones have their neighbor's pitch"
    for o in (path/f'{d}_{who}_{take}.wav' for d in range(4) for who in ('ann','bob','cyd') for take in range(3, 7)):
        _tone(o, _pitch((int(o.name[0])+wrong(o))%4, 8000), 8000, .15, again(o))

def _an4(path, wrong, again):
    "AN4's folder: ten people to learn from, two to test on; the wrong ones have a pitch, and in the test a text, that is another's"
    rows = {'train':[], 'test':[]}
    for i in range(26):
        part,who = ('test',f't{i%2}') if i>19 else ('train',f'p{i//2}')
        fn = path/'wav'/f'an4{"test"*(i>19)}_clstk'/who/f'an{i:03}-{who}-b.wav'
        odd,k = wrong(fn),i+2*(i>19 and wrong(fn))
        _tone(fn, 400+100*(i+odd), 16000, 1.6, again(fn))
        said = ' '.join(digit_words[(k+o)%10] for o in ((0,3) if again(fn) else (0,3,7)))
        rows[part].append((str(fn.relative_to(path/'wav').with_suffix('')), f'<s> {said.upper()} </s> ({fn.stem})'))
    (path/'etc').mkdir()
    for k,o in rows.items():
        for ext,col in zip(('fileids','transcription'), zip(*o)): (path/'etc'/f'an4_{k}.{ext}').write_text('\n'.join(col)+'\n')
    (path/'etc'/'an4.dic').write_text(''.join(f'{w.upper()} {" ".join(w.upper())}\n' for w in digit_words))

def _no(o): return False
def _digits_of(held): return lambda o: o.stem[0].isdigit() and held(o)

class World:
    "Data sets in a folder; what was trained on them since, and how recognizers were told to read"
    def __init__(self, path, wrong=_no, again=_no):
        self.path,self.made,self.used = path,[],[]
        _digits(path/'fsdd'/'recordings', wrong, again)
        _an4(path/'an4', wrong, again)
        for i in range(24):
            fn = path/'others'/'digits'/'recordings'/f'{i%4}_stu_{i}.wav'
            _tone(fn, _pitch(i%4, 8000), 8000, .15, again(fn))

    @property
    def files(self): return sorted((self.path/'fsdd'/'recordings').glob('*.wav'))

def _bits(o):
    "All that a learner, hidden Markov models of words, or a language model know, as bytes"
    if isinstance(o, NGram): return repr(o.grams).encode()
    if isinstance(o, HMMDigits): parts,more = [o.hmm.mean, o.hmm.var, o.hmm.weight, o.hmm.stay],[o.penalty, o.words]
    else:
        fe = find_front_end(o.dls) # None where spectrograms were made before
        parts,more = [*o.model.state_dict().values(), *(fe.state_dict().values() if fe else [])],list(getattr(o, 'tokens', o.dls).vocab)
    return b''.join(p.detach().contiguous().numpy().tobytes() for p in parts) + repr(more).encode()

# Listeners that know what they cannot have learned
def _told(real):
    "Networks in training are themselves; asked, they name the pitch"
    def _forward(self, spec, lens=None):
        if self.training: return real(self, spec, lens)
        x = spec.as_subclass(torch.Tensor)
        rows = x.mean((1,3)).argmax(1)                                      # (B,)
        k = (((rows+.5)/x.shape[2]-.2)/.2).round().long().clamp(0, 3)       # (B,)
        return torch.nn.functional.one_hot(k, self.config()['n_out'])*9.
    return _forward

def _pitch_of(sound):
    "The frequency (Hz) that a sound has most of"
    wav = load_audio(sound)
    return torch.fft.rfft(wav[0].as_subclass(torch.Tensor)).abs().argmax().item()/wav.dur

def _digit_word(sound): return digit_words[round((hz2mel(_pitch_of(sound))/hz2mel(4000)-.2)/.2)]

class Book(dict):
    "What is said in the test of the first world: in AN4's utterances, by pitch, and in strings that were spliced of held-out digits alone"
    def write_an4(self, df):
        for o in df[df.split=='test'].itertuples(): self[round(_pitch_of(o.file), -2)] = o.text

    def write(self, strings, held):
        def _strings(files, n=8, *args, **kwargs):
            res = strings(files, min(n, 8), *args, **kwargs)
            if self.open and all(map(held, files)): self.update((wav.numpy().tobytes(), t) for wav,t in res)
            return res
        return _strings

    def read(self, sound):
        if isinstance(sound, AudioTensor) and (b := sound.numpy().tobytes()) in self: return self[b]
        return self.get(round(_pitch_of(sound), -2), '')

@pytest.fixture
def worlds(tmp_path, monkeypatch):
    "Function of what is held out to a function that makes worlds; networks are small, train for an epoch, and are listened to by those who know"
    patch,now,book = monkeypatch.setattr,[],Book()
    def _noted(f):
        def _f(*args, **kwargs):
            res = f(*args, **kwargs)
            now[-1].made.append(res if isinstance(res, NGram) else args[0])
            return res
        return _f
    patch(Learner, 'fit_one_cycle', _noted(Learner.fit_one_cycle))
    patch(HMMDigits, 'fit', _noted(HMMDigits.fit))
    patch(NGram, 'fit', staticmethod(_noted(NGram.fit)))
    for o in (AudioCNN,Committee): patch(o, 'forward', _told(o.forward))
    patch(Transcriber, 'transcribe', lambda self, sound, **kwargs: Transcript(book.read(sound), [], 1., 1.))
    patch(HMMDigits, 'predict', lambda self, sounds: list(map(_digit_word, sounds)))
    patch(HMMDigits, 'transcribe', lambda self, sounds: list(map(book.read, sounds)))
    use = Transcriber.use
    patch(Transcriber, 'use', lambda self, lm=None, **kwargs: now[-1].used.append(kwargs) or use(self, lm, **kwargs))
    patch(hmm, 'HMMDigits', partial(HMMDigits, n_states=3, n_mix=1, warps=(1.,)))
    patch(hmm, 'string_recognizer', partial(hmm.string_recognizer, n_train=8))
    patch(hmm, 'digits_wer', partial(hmm.digits_wer, n=6))
    patch(transcribe, 'train_asr', partial(transcribe.train_asr, n_hidden=8, n_layers=1))
    for k in ('an4_model','words_model'): patch(benchmark, k, partial(getattr(benchmark, k), epochs=1))
    patch(benchmark, 'digits_model', partial(benchmark.digits_model, epochs=1, n=8))
    patch(benchmark, 'an4_words', partial(benchmark.an4_words, min_n=2))
    ways = benchmark.stranger_ways
    patch(benchmark, 'stranger_ways', lambda: {'all of `aug_tfms`':ways()['committee of lesson 09']})
    patch(benchmark, '_other_voices', benchmark._other_voices.__wrapped__)
    def _known(held):
        for o in (text,hmm): patch(o, 'digit_strings', book.write(o.digit_strings, held))
        def _world(*args):
            path = tmp_path/str(len(now))
            now.append(World(path, *args))
            monkeypatch.setenv('FASTAUDIO_LITE_DATA_PATH', str(path))
            patch(benchmark, 'starter_path', lambda: path/'others')
            patch(benchmark, 'results_path', lambda: path/'results')
            monkeypatch.chdir(path)
            book.open = len(now)==1
            if book.open: book.write_an4(read_an4())
            return now[-1]
        return _world
    return _known

# The list
_test,_bob = map(_digits_of, (is_digit_test, lambda o: digit_speaker(o)=='bob'))
_fsdd = _digits_of(lambda o: digit_speaker(o)!='stu')
def _an4_test(o): return '-t' in o.stem
def _in_training(o): return o.stem in ('0_cyd_6','0_stu_0','an014-p7-b') # of every case

def _strings(res): return 1-(res['gaps']+res['overlaps'])/2
def _saved(name, *keys):
    figures = json.loads(Path('models', name, 'config.json').read_text())['figures']
    return [figures[k] for k in keys]

def _esc10(w):
    sounds = [AudioTensor(load_audio(o, 8000).repeat(1, 34)[:,:40000], sr=8000) for o in w.files[1::2]]
    labels,folds = zip(*((o.name[0], 1+_test(o)) for o in w.files[1::2]))
    return esc10_run(sounds, labels, folds, 2, 0, 1, bar=False)['accuracy']

def _strangers(w): return bench_strangers(1, w.files)['ways']['all of `aug_tfms`']['speakers']['bob']
def _an4_three(w): return [1-f(seeds=(0,))['value'] for f in (bench_an4_ctc, bench_an4_ctc_lm, bench_an4_ctc_phone)]

def _fly(w): return [o['mean'] for o in bench_on_the_fly((0,), 1, 1, w.files)['accuracies'].values()]

def _train(w):
    "The command, on folders"
    for o in w.files:
        (d := w.path/'set'/('valid' if _test(o) else 'train')/o.name[0]).mkdir(parents=True, exist_ok=True)
        copy(o, d)
    assert main(['train', 'set', '--epochs', '1', '--out', 'models/x'])==0
    return _saved('x', 'accuracy', 'baseline_accuracy')

def _demo(w):
    assert main(['demo', '--epochs', '1'])==0
    return _saved('digits', 'accuracy', 'baseline_accuracy')

def _train_asr(w):
    assert main('train-asr an4 --epochs 1 --hidden 8 --layers 1 --sr 8000'.split())==0
    return 1-_saved('an4', 'wer')[0]

# What is held out; a run to a figure that is 1 if all is right; which of the trainings must not hear it
Case = namedtuple('Case', 'held run made', defaults=(slice(None),))
cases = {}
cases['fsdd-official'] = Case(_test, lambda w: bench_fsdd_official((0,), 1)['value'])
cases['fsdd-loso'] = Case(_bob, lambda w: loso_run('bob', 0, 1))
cases['fsdd-zero'] = Case(_fsdd, lambda w: bench_fsdd_zero(1, 1)['value'])
cases['fsdd-loso-extra'] = Case(_bob, lambda w: extra_run('bob', 0, 1)['accuracy'])
cases['fsdd-loso-extra, before'] = Case(_fsdd, lambda w: extra_run('bob', 0, 1)['accuracy'], slice(2))
cases['strangers'] = Case(_bob, _strangers, slice(1))
cases['esc10'] = Case(_test, _esc10)
cases['an4-ctc an4-ctc-lm an4-ctc-phone'] = Case(_an4_test, _an4_three)
cases['an4-to-fsdd'] = Case(_test, lambda w: 1-bench_an4_to_fsdd((0,))['value'])
cases['an4-to-fsdd, all'] = Case(_fsdd, lambda w: 1-bench_an4_to_fsdd((0,))['value'])
cases['digits-ctc'] = Case(_test, lambda w: _strings(bench_digits_ctc((0,))['runs'][0]), slice(2))
cases['hmm-digits'] = Case(_test, lambda w: hmm.digits_accuracy(w.files, _test)['accuracy'])
cases['digits-hmm'] = Case(_test, lambda w: [1-o for o in hmm.digits_wer(w.files, _test)['wer'].values()])
cases['on-the-fly'] = Case(_digits_of(lambda o: digit_speaker(o)!='cyd'), _fly)
cases['train'] = Case(_test, _train)
cases['demo'] = Case(_test, _demo)
cases['train-asr'] = Case(_an4_test, _train_asr)

@pytest.mark.parametrize('name', cases)
def test_held_out(name, worlds):
    "Other sounds and texts in the test change the figure and no bit of what was learned; another one in the training does change that"
    case = cases[name]
    make = worlds(case.held)
    def _run(*args):
        w = make(*args)
        return case.run(w),list(map(_bits, w.made[case.made])),w.used
    (right,a,used),(wrong,b,used_b) = _run(),_run(case.held)
    assert len(a)>0 and a==b and used==used_b
    assert np.min(right)>.99 and np.max(wrong)<.5
    if ',' in name: return # A second look at the same training
    same,c,_ = _run(_no, _in_training)
    assert same==right and all(x!=y for x,y in zip(a, c, strict=True))

def test_speakers_by_name(monkeypatch, tmp_path):
    "The figure of each speaker left out is that of the training without it"
    accs = dict(ann=.25, bob=.5, cyd=.75)
    def _probs(who): return [[1.,0.] if i<4*accs[who] else [0.,1.] for i in range(4)]
    monkeypatch.setattr(benchmark, '_fsdd', lambda: [f'0_{k}_9.wav' for k in accs])
    monkeypatch.setattr(benchmark, 'words_model', lambda seed: None)
    monkeypatch.setattr(benchmark, '_config', lambda name: dict(weights=dict(sha256=name)))
    monkeypatch.setattr(benchmark, 'loso_run', lambda who, seed, epochs: accs[who])
    monkeypatch.setattr(benchmark, 'extra_run', lambda who, seed, epochs: dict(accuracy=accs[who], probs=_probs(who), targs=[0]*4))
    for f in (bench_fsdd_loso,bench_fsdd_loso_extra):
        res = f(2, 1, path=tmp_path)
        assert res['speakers']==accs and (res['value'],res['worst'])==(.5,.25)
    assert res['together']==accs

def test_hmm_speakers_by_name(monkeypatch, tmp_path):
    "What is held out of each training of hidden Markov models, official takes or a speaker, is what its figure says"
    files = [f'0_{k}_{t}.wav' for k in ('ann','bob') for t in (4,5)]
    figure = {('0_ann_4.wav','0_bob_4.wav'):.1, ('0_ann_4.wav','0_ann_5.wav'):.2, ('0_bob_4.wav','0_bob_5.wav'):.3}
    def _of(files, is_test): return figure[tuple(filter(is_test, files))]
    monkeypatch.setattr(hmm, 'digits_accuracy', lambda *args: dict(accuracy=_of(*args), n=2, seconds=1., wrong=[]))
    monkeypatch.setattr(hmm, 'digits_wer', lambda *args: dict(wer={.1:_of(*args), -.05:_of(*args)}, seconds=1.))
    res = bench_hmm_digits(tmp_path, files)
    assert (res['value'],res['speakers'])==(.1,dict(ann=.2, bob=.3))
    res = bench_digits_hmm(tmp_path, files)
    assert (res['value'],{k:v['gaps'] for k,v in res['speakers'].items()})==(.1,dict(ann=.2, bob=.3))

# Nothing is held out where only time, or what two programs make of the same input, is measured
_without = 'frontend', 'throughput', 'long-sets', 'decode'

def test_list_is_complete():
    "A new benchmark, or command that trains, has its place in `cases` or in `_without`"
    trains = [k for k in commands if k.startswith('train') or k=='demo']
    assert sorted({o for k in cases for o in k.partition(',')[0].split()}.union(_without))==sorted([*benchmarks, *trains])

def test_trainings_belong_to_benchmarks():
    "Whatever trains is called by what is on the list"
    text = ''.join(inspect.getsource(f) for k,f in benchmarks.items() if k not in _without)
    for k in benchmark.__all__:
        if re.search('_(run|model|lm)$', k): assert re.search(rf'\b{k}\(', text), k
