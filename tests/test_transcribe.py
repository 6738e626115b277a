"The recognizer in one piece: chunks, long and odd sounds, subtitles, saved and loaded, stopped and gone on with, bad tables"
import copy, hashlib, io, json, resource, subprocess, sys, warnings

import numpy as np, pytest, safetensors.torch, soundfile as sf, torch
from hypothesis import Phase, given, settings, strategies as st

from fastaudio_lite.asr.ctc import CTCModel, LogProbs, Span
from fastaudio_lite.text import Tokens, check_transcripts, read_speech
from fastaudio_lite.asr.transcribe import Splice, Transcriber, Transcript, alphabet, captions, speech_chunks, step_dur, train_asr
from fastaudio_lite.audio import AudioError, AudioTensor, AudioWarning, load_audio
from fastaudio_lite.export import PretrainedError, _sum, from_pretrained, save_pretrained
from fastaudio_lite.spectrogram import FrontEnd

few = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
sr = 8000

def make(seed=0, stride=(2,2)):
    "An untrained recognizer of Spanish letters that says a lot"
    torch.manual_seed(seed)
    tokens = Tokens.letters(['año más niño'])
    model = CTCModel(len(tokens), 16, chs=(4,6), strides=stride, n_hidden=12, n_layers=1)
    torch.nn.init.normal_(model.head[1].weight, std=3.)
    return Transcriber(dict(tokens=tokens, model=model, front_end=FrontEnd(sr, n_mels=16, norm='bin')))

def sound(n, seed=0, rate=sr): return AudioTensor((torch.rand(1, n, generator=torch.Generator().manual_seed(seed))-.5)*.5, sr=rate)

@pytest.fixture(scope='module')
def tr(): return make()

def wav_bytes(wav, rate=sr):
    buf = io.BytesIO()
    sf.write(buf, np.asarray(wav).T, rate, format='WAV', subtype='FLOAT')
    return buf.getvalue()

# Chunks
def _whole(src, want, rate, max_dur, pause=.2):
    "Chunks that are not too long, start where the last ended, and together are `want (T,)`"
    parts = list(speech_chunks(src, rate, max_dur, pause))
    pos = 0
    for start,wav in parts:
        assert start==pytest.approx(pos/rate) and 0<wav.shape[-1]<=round(max_dur*rate) and wav.sr==rate
        pos += wav.shape[-1]
    got = torch.cat([torch.zeros(0), *(o[0].as_subclass(torch.Tensor) for _,o in parts)])
    torch.testing.assert_close(got, want)
    return parts

@few
@given(st.integers(0, 40_000), st.floats(.5, 3), st.floats(.01, .2), st.booleans(), st.integers(0, 10**6))
def test_chunks_are_the_whole(n, max_dur, pause, as_file, seed):
    "Every sample once, in order, whatever the length"
    x = sound(n, seed) if n else torch.zeros(1, 0)
    src = wav_bytes(x) if as_file else (x.numpy(), sr)
    if n: _whole(src, x[0].as_subclass(torch.Tensor), sr, max_dur, pause)

@pytest.mark.parametrize('n', (1, 2, 79, 3999, 4000, 4001, 7999, 8000, 8001, 16000, 16001))
def test_chunk_edges(n): _whole((sound(n).numpy(), sr), sound(n)[0].as_subclass(torch.Tensor), sr, 1.)

def test_chunks_cut_in_the_pause():
    x = sound(16000)
    x[:,5200:6000] *= 1e-3
    parts = _whole((x.numpy(), sr), x[0].as_subclass(torch.Tensor), sr, 1.5, .05)
    assert 5200 <= parts[0][1].shape[-1] <= 6000 or len(parts[0][1][0])>6000 # the quietest of its second half

def test_chunks_of_silence():
    "The same everywhere: still cut, still whole"
    _whole((np.zeros((1,20000), 'float32'), sr), torch.zeros(20000), sr, .7)

def test_chunks_resampled(tmp_path):
    "A file at another rate, stereo: as long as the sound is"
    sf.write(tmp_path/'a.wav', np.random.default_rng(0).normal(size=(48000*3,2))*.1, 48000)
    parts = list(speech_chunks(tmp_path/'a.wav', 16000, 1.))
    assert sum(o.shape[-1] for _,o in parts)==pytest.approx(48000, abs=2) and all(o.shape[0]==1 for _,o in parts)

def test_nothing_at_all(tr, tmp_path):
    "A file without a sample is no silence"
    sf.write(tmp_path/'a.wav', np.zeros(0), sr)
    with pytest.raises(AudioError, match='no samples in .*a.wav'): tr.transcribe(tmp_path/'a.wav')
    with pytest.raises(AudioError, match='no samples'): tr.transcribe((tmp_path/'a.wav').read_bytes())

# Sounds
@pytest.mark.parametrize('n', (1, 5, 40, 119, 120, 121, 500))
def test_very_short(tr, n):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        if n==1: warnings.filterwarnings('ignore', 'got silence') # One sample is a constant
        res = tr.transcribe((sound(n).numpy(), sr))
    assert isinstance(res.text, str) and res.dur==pytest.approx(n/sr)

def _sounds():
    "Silence, hum, clicks, a chord, white noise, clipped noise"
    t,g = np.arange(sr)/sr,np.random.default_rng(0)
    chord = sum(np.sin(2*np.pi*f*t) for f in (220, 277.2, 329.6, 440))/4
    clicks = np.zeros(sr)
    clicks[::997] = 1
    return dict(dc=np.full(sr, .3), hum=.2*np.sin(2*np.pi*50*t), clicks=clicks, chord=chord, noise=g.normal(size=sr)*.1, clipped=np.sign(g.normal(size=sr)))

@pytest.mark.parametrize('name', _sounds())
def test_no_speech(tr, name):
    "Some text, times in order within the sound, a confidence from 0 to 1; and the same again"
    src = _sounds()[name][None].astype('float32'),sr
    res = tr.transcribe(src)
    times = [x for o in res.words for x in (o.start,o.end)]
    assert times==sorted(times) and all(0<=o<=res.dur for o in times) and 0<=res.prob<=1
    assert res.text==' '.join(o.text for o in res.words) and tr.transcribe(src)==res

def test_words_end_in_time(tr, monkeypatch):
    "The last step is over after the sound: its word is not"
    n = round(10.3*tr.step*sr)
    def _say(self, wav):
        lp = torch.full((1,11,len(self.tokens)), -20.)
        lp[...,self.tokens.ids['a']] = 0.
        return lp.as_subclass(LogProbs)
    monkeypatch.setattr(Transcriber, 'forward', _say)
    assert tr.transcribe((sound(n).numpy(), sr)).words[-1].end==pytest.approx(n/sr)

def test_device(monkeypatch):
    "The sound goes where the weights are"
    seen = []
    def _say(self, wav):
        seen.append(wav.device.type)
        return torch.zeros(1, 5, len(self.tokens)).as_subclass(LogProbs)
    monkeypatch.setattr(Transcriber, 'forward', _say)
    make().to('meta').transcribe((sound(sr).numpy(), sr))
    assert seen==['meta']

@pytest.mark.parametrize('level', (0, 1e-6))
def test_silence(tr, level):
    with pytest.warns(AudioWarning, match='got silence'): res = tr.transcribe((level*np.ones((1,sr), 'float32'), sr))
    assert (res.text,res.words,res.prob,res.dur)==('',[],0,1)

def test_stereo_48k(tr, tmp_path):
    "48 kHz stereo, from a file, its bytes, an array: the same text, that of the sound at the recognizer's own rate"
    x = np.random.default_rng(0).normal(size=(2,48000)).astype('float32')*.1
    sf.write(tmp_path/'a.wav', x.T, 48000, subtype='FLOAT')
    want = tr.transcribe(load_audio((x,48000), sr)).text
    for src in (tmp_path/'a.wav', str(tmp_path/'a.wav'), (tmp_path/'a.wav').read_bytes()): assert tr.transcribe(src).dur==pytest.approx(1, abs=.01)
    assert want and tr.transcribe((x,48000)).text==want

def test_bad_sounds(tr, tmp_path):
    (tmp_path/'a.wav').write_bytes(b'RIFF, or so')
    for src in (tmp_path/'a.wav', np.full((1,100), np.nan, 'float32')):
        with pytest.raises(AudioError): tr.transcribe((src,sr) if isinstance(src, np.ndarray) else src)
    with pytest.raises(FileNotFoundError): tr.transcribe(tmp_path/'no.wav')

def test_hour(tmp_path, monkeypatch):
    "An hour in pieces: bounded memory, progress to the end, words from the first minute to the last"
    tr,rate = make(),4000
    tr.front_end.sr = rate
    def _say(self, wav): # the network's place: 'a' once in each piece
        res = torch.full((1,20,len(self.tokens)), -20.)
        res[...,0] = 0.
        res[:,5,0],res[:,5,self.tokens.ids['a']] = -20.,0.
        return res.as_subclass(LogProbs)
    monkeypatch.setattr(Transcriber, 'forward', _say)
    with sf.SoundFile(tmp_path/'hour.wav', 'w', rate, 1, 'PCM_16') as f:
        block = np.random.default_rng(0).integers(-9000, 9000, rate*60, dtype=np.int16)
        for _ in range(60): f.write(block)
    before,seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,[]
    res = tr.transcribe(tmp_path/'hour.wav', progress=seen.append)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before < 30_000 # KB; the samples as floats are 58 MB
    assert res.dur==pytest.approx(3600) and seen==sorted(seen) and seen[-1]==pytest.approx(3600)
    assert 180 <= len(res.words)==len(seen) <= 361
    gaps = np.diff([0, *(o.start for o in res.words), 3600])
    assert gaps.min()>0 and gaps.max()<=21

# Transcripts
words = [Span('hola', .5, .9, .8), Span('niño', 1., 1.4, .6), Span('más', 3661.25, 3662.5, 1.)]
said = Transcript('hola niño más', words, .8, 3700.)

def test_srt(): assert said.srt()=='1\n00:00:00,500 --> 00:00:01,400\nhola niño\n\n2\n01:01:01,250 --> 01:01:02,500\nmás\n'
def test_vtt(): assert said.vtt()=='WEBVTT\n\n00:00:00.500 --> 00:00:01.400\nhola niño\n\n01:01:01.250 --> 01:01:02.500\nmás\n'
def test_no_captions(): assert (Transcript('', [], 0., 1.).srt(), Transcript('', [], 0., 1.).vtt())==('', 'WEBVTT\n\n')

def test_json():
    d = json.loads(json.dumps(said.json()))
    assert d['words'][1]==dict(text='niño', start=1., end=1.4, prob=.6) and (d['text'],d['prob'],d['dur'])==(said.text,.8,3700)

@pytest.mark.parametrize('t,want', ((0,'00:00:00,000'), (59.9996, '00:01:00,000'), (3599.9999, '01:00:00,000'), (1.0004,'00:00:01,000'), (360000,'100:00:00,000')))
def test_stamp(t, want):
    "Rounded once: a minute never has sixty seconds"
    from fastaudio_lite.asr.transcribe import _stamp
    assert _stamp(t, ',')==want

@few
@given(st.lists(st.tuples(st.text('abñ', min_size=1, max_size=70), st.floats(0, 2), st.floats(.1, 1)), max_size=12))
def test_captions(items):
    "All letters once, in order; no longer than asked, whole words where they fit"
    t,ws = 0.,[]
    for text,gap,dur in items:
        ws.append(Span(text, t+gap, t+gap+dur, .5))
        t += gap+dur
    res = captions(ws, max_chars=20)
    assert ''.join(o.text for o in res).replace(' ', '')==''.join(o.text for o in ws)
    short = [o.text for o in ws if len(o.text)<=20]
    assert [o for c in res for o in c.text.split() if o in short]==short or any(len(o.text)>20 for o in ws)
    for o in res: assert o.start<o.end and len(o.text)<=20
    assert all(a.end<=b.start+1e-9 for a,b in zip(res, res[1:]))

def test_captions_of_scripts_without_spaces():
    "Cut inside words, in equal parts with their share of the time; a letter keeps its accents; any white space is one"
    res = captions([Span('你好世界'*50, 0., 20., .9)])
    assert [(len(o.text),o.start,o.end) for o in res]==[(50,i*5.,i*5.+5) for i in range(4)]
    assert [o.text for o in captions([Span('ก้ก้ก้', 0., 1., .9)], max_chars=3)]==['ก้','ก้','ก้']
    assert [o.text for o in captions([Span('a\u3000b\n\nc', 0., 1., .9), Span(' ', 1., 2., .9)])]==['a b c']
    with pytest.raises(ValueError, match='max_chars=0'): captions([], max_chars=0)

def test_vtt_is_no_markup(): assert '\n&lt;a&gt; &amp;\n' in Transcript('', [Span('<a>', 0., 1., 1.), Span('&', 1., 2., 1.)], 1., 2.).vtt()

# Decoders
def test_use(tr):
    "With a lexicon nothing else is written; without arguments it is greedy again"
    src,want = (sound(sr).numpy(), sr),tr.transcribe((sound(sr).numpy(), sr))
    try: assert set(tr.use(lexicon=['niño','año']).transcribe(src).text.split()) <= {'niño','año'}
    finally: tr.use()
    assert tr.transcribe(src)==want

# Saved
@pytest.fixture(scope='module')
def saved(tr, tmp_path_factory): return save_pretrained(tr, tmp_path_factory.mktemp('m')/'es', dict(wer=.5, split='none', n=2, seeds=1))

def test_frames_that_begin_at_hops(tr):
    "Without padding a frame's middle is half a window later, and so are the words"
    class Reader:
        def read(self, out, step): return [Span('a', .1, .2, 1.)]
    late = copy.copy(tr)
    late._modules = dict(tr._modules, front_end=FrontEnd(sr, n_mels=16, norm='bin', center=False))
    a,b = (o.transcribe(sound(8000), Reader()).words[0] for o in (tr, late))
    assert (b.start-a.start,b.end-a.end)==pytest.approx(2*[late.front_end.n_fft/2/sr])

def test_network_of_another_kind(tr):
    "A network may say what it likes, with lengths, and reads it itself; the folder's name for it is checked"
    class Says(torch.nn.Module):
        def forward(self, x, lens): return x.as_subclass(torch.Tensor)[:,0].transpose(1,2),torch.tensor([x.shape[-1]-1])
        def read(self, out, step): return [Span(str(tuple(out.shape)), 0., step, 1.)]
    other = copy.copy(tr)
    other._modules = dict(tr._modules, model=Says())
    other.model.stride = 4
    n_mels,T = tr.listen(sound(8000)[None])[0].shape[2:]
    assert other.transcribe(sound(8000)).text==str((T-1, n_mels))
    with pytest.raises(PretrainedError, match='expected CTCModel'): Transcriber.check(tr.config()|dict(arch='AudioCNN'))

def test_round_trip(tr, saved, tmp_path):
    "The same numbers, here and in a fresh process that loads no training library"
    fn = tmp_path/'a.wav'
    sf.write(fn, sound(sr*2, 3).numpy().T, sr, subtype='FLOAT')
    want = tr.transcribe(fn)
    assert Transcriber.from_pretrained(saved).transcribe(fn)==from_pretrained(saved).transcribe(fn)==want and want.text
    code = ('import json, sys; from fastaudio_lite.asr.transcribe import Transcriber; print(json.dumps(Transcriber.from_pretrained(sys.argv[1])'
        '.transcribe(sys.argv[2]).json())); print(*[o for o in ("fastai.learner", "fastai.vision", "torchvision", "jiwer", "tokenizers", "numba") if o in sys.modules])')
    res = subprocess.run([sys.executable, '-c', code, saved, fn], capture_output=True, text=True, cwd=tmp_path)
    out,loaded = res.stdout.splitlines()
    assert json.loads(out)==json.loads(json.dumps(want.json())) and loaded=='' and res.stderr==''

def test_wrong_kind(saved, tmp_path):
    from fastaudio_lite.classifier import Classifier
    with pytest.raises(PretrainedError): Classifier(saved)
    with pytest.raises(PretrainedError): Transcriber.from_pretrained(tmp_path)

def _forged(saved, folder, change):
    "A copy of the model whose config was changed, with sums that fit, as an enemy would"
    folder.mkdir()
    d,raw = json.loads((saved/'config.json').read_text(encoding='utf-8')),safetensors.torch.load_file(saved/'model.safetensors')
    change(d['config'])
    raw = safetensors.torch.save(raw, {'config_sha256':_sum(d['kind'], d['config'])})
    d['weights']['sha256'] = hashlib.sha256(raw).hexdigest()
    (folder/'model.safetensors').write_bytes(raw)
    (folder/'config.json').write_text(json.dumps(d), encoding='utf-8')
    return folder

_changes = dict(blank=lambda c: c['tokens']['vocab'].__setitem__(0, 'x'), fewer=lambda c: c['tokens']['vocab'].pop(),
    twice=lambda c: c['tokens']['vocab'].__setitem__(3, 'a'), number=lambda c: c['tokens']['vocab'].__setitem__(2, 7),
    merges=lambda c: c['tokens'].update(merges=[['q','z']]), alien=lambda c: c['tokens'].update(vocab='añ'),
    huge=lambda c: c['model'].update(n_hidden=10**9), none=lambda c: c['model'].update(n_layers=None), negative=lambda c: c['model'].update(n_layers=-1),
    stride=lambda c: c['model'].update(strides=[0,2]), steps=lambda c: c['model'].update(strides=[2]), mels=lambda c: c['front_end'].update(n_mels=32),
    dropout=lambda c: c['model'].update(p=7), more=lambda c: c['model'].update(evil='x'), lack=lambda c: c.pop('front_end'))

@pytest.mark.parametrize('name', list(_changes))
def test_tampered(saved, tmp_path, name):
    "A config that was changed is refused in one sentence"
    with pytest.raises(PretrainedError) as e: Transcriber.from_pretrained(_forged(saved, tmp_path/'m', _changes[name]))
    assert len(str(e.value))<600

def test_tampered_plainly(saved, tmp_path):
    "A letter is another one, and the sums are not touched"
    folder = _forged(saved, tmp_path/'m', lambda c: None)
    d = json.loads((folder/'config.json').read_text(encoding='utf-8'))
    d['config']['tokens']['vocab'][-1] = 'z'
    (folder/'config.json').write_text(json.dumps(d), encoding='utf-8')
    with pytest.raises(PretrainedError): Transcriber.from_pretrained(folder)

# Training
@pytest.fixture
def table(tmp_path):
    "Four clips of two sounds, called año and más"
    rows = ['file,text,speaker,split']
    for i in range(6):
        f = 300 if i%2 else 900
        sf.write(tmp_path/f'{i}.wav', .3*np.sin(2*np.pi*f*np.arange(4800)/sr)*np.hanning(4800), sr)
        rows.append(f"{i}.wav,{'¡Año!' if i%2 else 'MÁS'},s{i//2},{'valid' if i>3 else 'train'}")
    (tmp_path/'t.csv').write_text('\n'.join(rows)+'\n', encoding='utf-8')
    return tmp_path/'t.csv'

tiny = dict(bs=2, sr=sr, tokens=0, n_hidden=8, n_layers=1, augment=False)

def _halt(epoch, event='after_epoch'):
    from fastai.callback.core import Callback
    class Halt(Callback):
        order = 90
        def _stop(self):
            if self.epoch==epoch: raise KeyboardInterrupt
    halt = Halt()
    setattr(halt, event, halt._stop)
    return halt

def _quiet(): # no progress bar
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback
    class Quiet(Callback):
        def after_create(self):
            self.learn.remove_cbs(ProgressCallback)
            self.learn.logger = lambda o: None
    return Quiet()

def _train(table, folder, epochs=3, seed=0, cbs=(), **kwargs):
    torch.manual_seed(seed)
    return train_asr(read_speech(table), folder, epochs=epochs, cbs=[_quiet(), *cbs], **{**tiny, **kwargs})

def test_restart(table, tmp_path):
    "Stopped after an epoch, or within one: the schedule, the optimiser, the average, the words in new orders and the dice are those of one run"
    whole = _train(table, tmp_path/'whole', epochs=4, augment=True)
    with pytest.raises(KeyboardInterrupt): _train(table, tmp_path, epochs=4, augment=True, cbs=[_halt(1)])
    d = torch.load(tmp_path/'checkpoint.pt', weights_only=True)
    assert d['epoch']==2 and d['mem']['fill']['spans'] is not None
    with pytest.raises(KeyboardInterrupt): _train(table, tmp_path, epochs=4, augment=True, seed=7, cbs=[_halt(2, 'after_batch')])
    learn = _train(table, tmp_path, epochs=4, augment=True, seed=9)
    assert len(learn.recorder.values[-1])>=4
    d = torch.load(tmp_path/'checkpoint.pt', weights_only=True)
    assert d['epoch']==4 and d['mem']['average_weights']['n']==8
    again = _train(table, tmp_path, epochs=4, augment=True, seed=5) # all of it is done: nothing to add
    for a,b,c in zip(*(o.model.state_dict().values() for o in (whole, learn, again))): assert torch.equal(a, b) and torch.equal(b, c)

@pytest.mark.parametrize('change', (dict(epochs=4), dict(bs=3), dict(lr=.1), dict(n_hidden=10), dict(tokens=12)))
def test_other_checkpoint(table, tmp_path, change):
    "A checkpoint of other settings is refused, in a sentence that can be read"
    if not (tmp_path/'checkpoint.pt').exists():
        with pytest.raises(KeyboardInterrupt): _train(table, tmp_path, epochs=2, cbs=[_halt(0)])
    with pytest.raises(ValueError, match='of a run with another') as e: _train(table, tmp_path, **{'epochs':2, **change})
    assert 'checkpoint.pt' in str(e.value)

def test_new_folder(table, tmp_path):
    "Is made, with those above it"
    _train(table, tmp_path/'new'/'deep', epochs=1)
    assert (tmp_path/'new'/'deep'/'checkpoint.pt').exists()

@pytest.mark.parametrize('share', (0, .5))
def test_damaged_checkpoint(table, tmp_path, share):
    _train(table, tmp_path, epochs=1)
    fn = tmp_path/'checkpoint.pt'
    fn.write_bytes(fn.read_bytes()[:int(fn.stat().st_size*share)])
    with pytest.raises(ValueError, match='damaged checkpoint .*checkpoint.pt.* remove it to start afresh'): _train(table, tmp_path, epochs=1)

def test_alphabet(table):
    "Of the training rows alone; and one that was made before is taken as it is"
    df = read_speech(table)
    df.loc[df.split=='valid','text'] = 'zoo'
    assert alphabet(df, 0)==Tokens.letters(['año','más']) and len(alphabet(df, 12))==12
    more = Tokens.letters(['año más zoo'])
    learn = _train(table, None, epochs=1, tokens=more)
    assert learn.tokens is more and Transcriber(learn).step==pytest.approx(step_dur)

def test_hears_spanish(table, tmp_path):
    "A trained learner becomes a recognizer with its letters"
    tr = Transcriber(_train(table, None, epochs=1))
    assert tr.tokens==Tokens.letters(['año','más']) and set(tr.transcribe(tmp_path/'0.wav').text) <= set('año más')

# Tables
@pytest.mark.parametrize('text,msg', (('', 'columns'), ('name,text\na.wav,x\n', 'file'), ('file,words\na.wav,x\n', 'text'), ('file,text\n', 'without a row'),
    ('file,text,split\na.wav,x,dev\n', "got 'dev' in the column 'split'"), ('file,text\na.wav,x,y,z,w\nb,c\n', 'cannot be read|columns')))
def test_bad_csv(tmp_path, text, msg):
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(ValueError, match=msg) as e: read_speech(tmp_path/'t.csv')
    assert 't.csv' in str(e.value)

def test_csv_of_bytes(tmp_path):
    (tmp_path/'t.csv').write_bytes('file,text\na.wav,año\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='UTF-8'): read_speech(tmp_path/'t.csv')
    with pytest.raises(FileNotFoundError): read_speech(tmp_path/'no.csv')

def test_problems_are_named(table):
    "Unknown letters, nothing to say, more than fits, no file: each row with its reason"
    df = read_speech(table)
    df = df.assign(text=['ζ', '', 'año '*20, 'más', 'más', 'año'], file=[*df.file[:3], 'no.wav', *df.file[4:]])
    bad = check_transcripts(df, Tokens.letters(['año','más']), .06)
    assert bad.row.tolist()==[0,1,2,3]
    for o,w in zip(bad.problem, ('letters outside the alphabet: ζ', 'empty', 'too long for its audio', 'missing file')): assert w in o
    with pytest.raises(ValueError, match='cannot be learnt from'): train_asr(df, epochs=1, **tiny)

def test_splice():
    "Words of one speaker, as long as the clip that they replace, with the text that belongs to them; seldom words come more often"
    tokens = Tokens.letters(['a b c'])
    def word(v, n=800): return AudioTensor(torch.full((1,n), v), sr=sr)
    clip = (word(9., 3900),torch.tensor(tokens.encode('a')))
    splice = Splice(tokens, p=1.)
    assert splice(clip, split_idx=0)[0] is clip[0] # no words yet
    splice.bank = [([('a', word(1.)), ('b', word(2.))], [1.,9.]), ([('c', word(3.))], [1.])]
    def drawn(seed):
        torch.manual_seed(seed)
        return [splice(clip, split_idx=0) for _ in range(40)]
    said = drawn(0)
    assert all(torch.equal(a, b) for a,b in zip([ids for _,ids in said], [ids for _,ids in drawn(0)])) # A seed repeats a run
    for wav,ids in said:
        words = tokens.decode(ids.tolist()).split()
        assert wav.shape==(1,4000) and len(words)==5 and set(words) in ({'a'},{'b'},{'a','b'},{'c'})
        assert [' abc'[int(o)] for o in wav[0,400::800]]==words
    text = ' '.join(tokens.decode(ids.tolist()) for _,ids in said)
    assert text.count('b')>2*text.count('a') and splice(clip, split_idx=1)[0] is clip[0]

def test_fill():
    "Each speaker's words stay among themselves; a word that comes four times weighs half as much as one that comes once"
    def clip(v): return (AudioTensor(torch.full((1,3200), v), sr=sr),)
    spans = [[Span('a', 0., .2, 1.), Span('b', .2, .4, 1.)], [Span('a', 0., .2, 1.), Span('a', .2, .4, 1.)], [], [Span('a', 0., .4, 1.)]]
    splice = Splice(Tokens.letters(['a b']))
    splice.fill([clip(1.), clip(2.), clip(3.), clip(4.)], spans, ['ann','bob','ann','ann'])
    assert [[(t, o[0,0].item()) for t,o in ws] for ws,_ in splice.bank]==[[('a',1.), ('b',1.), ('a',4.)], [('a',2.), ('a',2.)]]
    assert [w for _,w in splice.bank]==[[.5,1.,.5], [.5,.5]]
