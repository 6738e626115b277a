"Texts as targets: alphabets for any letters, tables with everything wrong in them, loaders that drop nothing, error rates against jiwer"
import copy, io, json, os, pickle, random, subprocess, sys, unicodedata, warnings
from types import SimpleNamespace

import jiwer, matplotlib, numpy as np, pandas as pd, pytest, torch
matplotlib.use('agg')
import matplotlib.pyplot as plt
from fastai.data.block import DataBlock
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.learner import Learner
from fastai.torch_core import set_seed
from hypothesis import given, settings, strategies as st
from torch import nn, tensor

from fastaudio_lite.text import *
from fastaudio_lite.audio import AudioTensor, AudioWarning, load_audio, save_audio
from fastaudio_lite.data import AudioBlock
from fastaudio_lite.datasets import DataError, digit_files, digit_label, digit_speaker, find_data
from fastaudio_lite.spectrogram import AudioSpectrogram, FrontEnd

real = pytest.mark.skipif(not find_data('an4'), reason='AN4 is not on the data path')
quick = settings(max_examples=60, deadline=None)
letter = st.characters(categories=['L','M','N'])
phrases = st.lists(st.text(letter | st.just(' '), max_size=30), min_size=1, max_size=8).map(lambda xs: list(map(clean_text, xs)))
some = ['nineteen eighty one', 'thirteen', 'enter nine', "o'neil", 'erase t e n', 'fourteen nineteen']

def plain(x): return x.as_subclass(torch.Tensor)
def tone(dur, sr=8000): return AudioTensor(0.1*torch.sin(torch.arange(int(dur*sr))*0.3)[None], sr=sr)
def texts(ids): return TensorText(torch.tensor(ids, dtype=torch.long))

# Cleaning
@quick
@given(st.text())
def test_clean_once(s):
    t = clean_text(s)
    assert clean_text(t)==t==unicodedata.normalize('NFC', t)==' '.join(t.split())
    assert all(c in " '" or unicodedata.category(c)[0] in 'LMN' for c in t)

@pytest.mark.parametrize('s,t', [('¡Él ESTÁ aquí!', 'él está aquí'), ('nin\u0303o', 'niño'), ("rock 'n' roll", 'rock n roll'), ('don’t', "don't"),
    ('l’été—là', "l'été là"), ('a\u200bb', 'ab'), ("''", ''), ("a''b", 'a b'), ('U.S.A.', 'u s a'), ('3,5', '3 5'), ('ẞ', 'ß'), ('\t\n', ''), ('हिन्दी', 'हिन्दी')])
def test_clean(s, t): assert clean_text(s)==t

@pytest.mark.parametrize('s,t', [('\u2764\ufe0f ok', 'ok'), ('1\ufe0f\u20e3', '1'), ('İ', 'i'), ('I\u0307', 'i'), ('كتـــاب', 'كتاب'), ('ﻼ', 'لا'), ('ﬁﬂﬅ', 'fiflst'),
    ('Ａ１ ｶﾞ \uffc2', 'a1 ガ \u314f'), ('①', '1'), ('㎞', 'km'), ('Ⅳ', 'iv'), ('ĳs', 'ijs'), ('ſo', 'so'), ('⽔', '水'), ('a\u034fb', 'ab'), ('צ׳ק', "צ'ק"), ('a\xa0b\u2028c\u3000d', 'a b c d')])
def test_one_spelling(s, t): assert clean_text(s)==t

@pytest.mark.parametrize('s', ['น้ำ', 'ຫນຳ ໜ', 'नमस्ते', 'שָׁלוֹם', '한국어', 'ㅋㅋ', 'x²', '1º', 'և', 'བོད'])
def test_letters_stay_whole(s): assert clean_text(s)==unicodedata.normalize('NFC', s)

@quick
@given(st.lists(st.text('aé水น', min_size=1), min_size=1), st.sampled_from(list('\t\n\r\x0b\x85\xa0\u2009\u2028\u3000')))
def test_one_white_space(ws, gap):
    "For transcripts, alphabets and error rates alike, whatever stands around the words"
    s,t = f'{gap}{gap.join(ws)}{gap*2}',' '.join(ws)
    tk = Tokens.letters([s])
    assert split_words(s)==ws and clean_text(s)==t and tk.encode(s)==tk.encode(t) and not tk.unknown(s) and gap not in tk.vocab
    assert wer(s, t)==wer(t, s)==cer(s, t)==0 and not len(error_table(s, t)) and wer_interval(s, t)==(0,0)

def test_spaces_of_no_width():
    assert wer('\ufeffone two\u200b', 'one two')==cer('o\u2060ne', 'one')==0 and clean_text('\ufeffo\u200bne')=='one'
    with pytest.raises(ValueError, match='without a word'): wer(['\u200b'], ['a'])

# Alphabets
@quick
@given(phrases)
def test_letters_any_script(xs):
    tk = Tokens.letters(xs)
    assert tk.vocab[:2]==['',' '] and len(set(tk.vocab))==len(tk)
    for o in xs: assert tk.decode(tk.encode(o))==o and 0 not in tk.encode(o)

@quick
@given(phrases, st.integers(0, 40))
def test_subwords_any_script(xs, more):
    n = len(Tokens.letters(xs))+more
    tk = Tokens.subwords(xs, n)
    assert len(tk)<=n and set(Tokens.letters(xs).vocab)<=set(tk.vocab)
    for o in xs:
        ids = tk.encode(o)
        assert tk.decode(ids)==o and 0 not in ids and len(ids)<=len(o)+1
        assert ''.join(tk.vocab[i] for i in ids).strip()==o
    again = Tokens.from_config(json.loads(json.dumps(tk.config())))
    assert again==tk and all(again.encode(o)==tk.encode(o) for o in xs)

def test_subwords_carry_their_space():
    tk = Tokens.subwords(some*5, 60)
    assert [tk.vocab[i] for i in tk.encode('nineteen')]==[' nineteen'] and ' ' not in [o[-1:] for o in tk.vocab if len(o)>1]

def test_subwords_without_spaced_pieces():
    "Merges inside words alone: the first word must not get lost"
    tk = Tokens(['',' ','a','b','ab'], [('a','b')])
    assert tk.encode('ab ab')==[1,4,1,4] and tk.decode([1,4,1,4])=='ab ab'

def test_subwords_do_not_depend_on_order():
    xs = some*3
    assert Tokens.subwords(xs[::-1], 50)==Tokens.subwords(xs, 50)

def test_one_space():
    "However often the space is written: its number is not a mistake"
    tk = Tokens.letters(['a b'])
    assert tk.decode([2,1,0,1,3,1])=='a b'

def test_words():
    tk = Tokens(['',' one',' two',' twofold'])
    assert tk.encode('two  one twofold')==[2,1,3] and tk.decode([2,0,1])=='two one' and tk.encode('')==[] and tk.unknown(' ')==[]
    with pytest.raises(ValueError, match="' ' 'e' 'h' 'r' 't'"): tk.encode('one three')

@pytest.mark.parametrize('vocab', [[], ['a','b'], ['','a','a'], ['','a',''], [' ','a']])
def test_bad_vocab(vocab):
    with pytest.raises(ValueError, match='expected the blank'): Tokens(vocab)

def test_bad_tokens():
    tk = Tokens.letters(['abc'])
    with pytest.raises(ValueError, match="outside the alphabet: 'd' 'ñ'"): tk.encode('cañad')
    for i in -1,len(tk):
        with pytest.raises(ValueError, match=f'got the token {i}'): tk.decode([1, i])
    with pytest.raises(ValueError, match='merges of another alphabet'): Tokens(['',' ','a'], [('a','b')])
    with pytest.raises(ValueError, match='got 3 pieces for 4 letters'): Tokens.subwords(['abc'], 3)
    with pytest.raises(ValueError, match='clean the texts first'): Tokens.subwords(['a▁b'], 30)

def test_no_texts():
    "An alphabet of nothing writes nothing"
    for tk in Tokens.letters([]),Tokens.subwords([''], 2): assert tk.encode(' ')==[] and tk.decode([])=='' and tk.unknown('a')==['a']

def test_tokens_travel():
    tk = Tokens.subwords(some, 40)
    tk.encode(some[0])
    for o in pickle.loads(pickle.dumps(tk)),copy.deepcopy(tk): assert o==tk and hash(o)==hash(tk) and o.encode(some[0])==tk.encode(some[0])
    assert tk!=Tokens.letters(some) and tk!=tk.vocab and f'{len(tk)} pieces' in repr(tk)
    assert tk.decode(torch.tensor(tk.encode(some[0])))==tk.decode(np.array(tk.encode(some[0])))==some[0]

def test_fresh_process():
    "Without fastai's training half, and with the same pieces whatever the hash seed"
    code = f"import sys\nfrom fastaudio_lite.text import Tokens\nprint(Tokens.subwords({some*3!r}, 50).vocab)\n" \
        "print([o for o in ('fastai.learner','fastai.vision','torchvision','jiwer','numba','librosa') if o in sys.modules])"
    res = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, env=os.environ|{'PYTHONHASHSEED':'7'})
    assert res.stdout.splitlines()==[str(Tokens.subwords(some*3, 50).vocab), '[]'], res.stderr

# Tables
def table(df):
    assert list(df)==['file','text','speaker','split'] and set(df.split)<={'train','valid','test'}
    who = [set(df.speaker[df.split==o]) for o in ('train','valid','test')]
    assert not who[0]&who[1] and not who[0]&who[2] and not who[1]&who[2]
    assert list(df.text.map(clean_text))==list(df.text) and df.text.all()
    return who

def test_starter():
    df = read_starter()
    assert list(map(len, table(df)))==[11,3,4] and not len(check_transcripts(df, Tokens.letters(df.text)))
    assert read_starter().equals(df) and not read_starter(seed=1).equals(df)
    assert set(read_starter(n_valid=0).split)=={'train','test'}
    with pytest.raises(ValueError, match='got 14 of 14 speakers'): read_starter(n_valid=14)

def test_speech_table(capsys):
    df = speech_table()
    assert len(table(df)[2])>=4 and len(capsys.readouterr().out.splitlines())==1

@pytest.mark.real
@real
def test_an4():
    df = read_an4()
    assert list(map(len, table(df)))==[66,8,10] and len(df)==1078 and (df.split=='test').sum()==130
    assert df.text[df.split=='test'].str.split().str.len().sum()==773
    assert not len(check_transcripts(df, Tokens.subwords(df.text, 120), 0.06))
    assert table(read_an4(n_valid=3, seed=2))[1]!=table(read_an4(n_valid=3, seed=3))[1]

def an4(path, ids, lines):
    (path/'etc').mkdir()
    for part in 'train','test':
        (path/'etc'/f'an4_{part}.fileids').write_text('\n'.join(ids))
        (path/'etc'/f'an4_{part}.transcription').write_text('\n'.join(lines))
    return path

def test_an4_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="AN4's folder"): read_an4(tmp_path)
    ids = ['clstk/abc/an1-abc-b','clstk/def/an2-def-b']
    path = an4(tmp_path, ids, ['<s> YES </s> (an1-abc-b)','<s> NO </s> (an3-def-b)'])
    with pytest.raises(DataError, match='an3-def-b.*expected its transcript'): read_an4(path)
    (path/'etc'/'an4_train.transcription').write_text('<s> YES </s> (an1-abc-b)')
    with pytest.raises(DataError, match='got 1 transcripts for 2 train files'): read_an4(path)

def write(path, s, name='t.csv', encoding='utf-8'):
    (path/name).write_bytes(s.encode(encoding))
    return path/name

def test_own_table(tmp_path):
    (tmp_path/'sub').mkdir()
    fn = write(tmp_path, '\ufefffile,text,speaker,extra\na.wav,"¿Sí, señor?",ana,1\nsub/b.wav,null,ana,\n/abs/c.wav,NA,eva,2\nd.wav, nin\u0303o ,luis,3\ne.wav,,eva\n')
    df = read_speech(fn)
    assert list(df)==['file','text','speaker','split'] and list(df.text)==['sí señor','null','na','niño','']
    assert df.file[1]==str(tmp_path/'sub'/'b.wav') and df.file[2]=='/abs/c.wav'
    assert len(set(df.speaker[df.split=='valid']))==1 and not set(df.speaker[df.split=='valid'])&set(df.speaker[df.split=='train'])
    assert read_speech(fn).equals(df) and len({tuple(read_speech(fn, seed=o).split) for o in range(9)})>1

def test_own_split(tmp_path):
    df = read_speech(write(tmp_path, 'file,text,split\na.wav,a,train\nb.wav,b,test\n'))
    assert list(df.split)==['train','test'] and list(df.speaker)==['','']
    df = read_speech(write(tmp_path, 'text,file\n'+''.join(f'a,{i}.wav\n' for i in range(30))), valid_pct=0.1)
    assert (df.split=='valid').sum()==3
    assert list(read_speech(write(tmp_path, 'file,text\na.wav,a\n')).split)==['train']

def test_share(tmp_path):
    fn = write(tmp_path, 'file,text,speaker\n'+''.join(f'{i}.wav,a,s{i}\n' for i in range(30)))
    for o in 20,1,0,-0.1:
        with pytest.raises(ValueError, match=f'got valid_pct={o}, expected a share'): read_speech(fn, valid_pct=o)

def test_rows_without_a_name(tmp_path):
    "Each is drawn by itself: never all of them to one side"
    fn = write(tmp_path, 'file,text,speaker\n'+''.join(f'{i}.wav,a,\n' for i in range(7))+'7.wav,a,ana\n8.wav,a,ana\n9.wav,a,ana\n')
    for seed in range(9):
        df = read_speech(fn, valid_pct=0.4, seed=seed)
        assert df.split[df.speaker=='ana'].nunique()==1 and df.split[df.speaker==''].nunique()==2

def test_known_voice(tmp_path):
    fn = write(tmp_path, 'file,text,speaker,split\na.wav,a,ana,train\nb.wav,b,ana,test\nc.wav,c,,train\nd.wav,d,,test\ne.wav,e,eva,valid\n')
    with pytest.warns(AudioWarning, match="speaker 'ana' in train and in test of t.csv: .*new voices") as w: read_speech(fn)
    assert len(w)==1
    with warnings.catch_warnings(action='error'): read_speech(write(tmp_path, 'file,text,speaker,split\na.wav,a,ana,train\nb.wav,b,eva,test\n'))

@pytest.mark.parametrize('s,msg', [('', 'cannot be read .it is empty'), ('file,text\n', 'without a row'), ('file\na.wav\n', 'expected text too: name them in the first line'),
    ('file,Text\na,b\n', 'expected text too'), ('file,text\na.wav,sí, mañana\n', 'quotes around a text that has a comma'),
    ('file,text,split\na.wav,a,dev\n', "got 'dev' in the column 'split'")])
def test_bad_csv(tmp_path, s, msg):
    with pytest.raises(ValueError, match=msg): read_speech(write(tmp_path, s))

def test_bad_csv_file(tmp_path):
    with pytest.raises(ValueError, match='expected a csv file in UTF-8'): read_speech(write(tmp_path, 'file,text\na.wav,señal\n', encoding='latin-1'))
    for o,why in (tmp_path,'this is a folder'),(tmp_path/'no.csv','no such file'):
        with pytest.raises(FileNotFoundError, match=f'expected a csv file.*{why}'): read_speech(o)

# The report
@pytest.fixture
def clips(tmp_path):
    for i in range(8): save_audio(tone(0.5+i/10), tmp_path/f'{i}.wav')
    save_audio(tone(0.1), tmp_path/'short.wav')
    (tmp_path/'broken.wav').write_bytes(b'RIFF nothing')
    return tmp_path

def rows(path, *xs, split='train'): return pd.DataFrame([(str(path/f), t, 'x', split) for f,t in xs], columns=['file','text','speaker','split'])

def test_report(clips):
    tk = Tokens.letters(['abc'])
    df = rows(clips, ('0.wav','ab'), ('1.wav',''), ('2.wav','año'), ('short.wav','abcabc'), ('no.wav','a'), ('broken.wav','a'), ('0.wav','ab'), ('3.wav',float('nan')))
    bad = check_transcripts(df, tk)
    assert list(bad)==['row','file','problem'] and list(bad.row)==[1,2,3,4,5,6,7]
    for p,o in zip(bad.problem, ['empty', 'letters outside the alphabet: o ñ', 'too long for its audio', 'missing', 'unreadable', 'listed before', 'empty']): assert p.startswith(o)
    assert not len(check_transcripts(df[:1], tk)) and list(check_transcripts(df).row)==[1,3,4,5,6,7]
    assert not len(check_transcripts(rows(clips, ('short.wav','aa'))[:1], tk, 0.033)) and len(check_transcripts(rows(clips, ('short.wav','aa')), tk, 0.034))
    with pytest.raises(ValueError, match='expected text too'): check_transcripts(df[['file']])

def test_rows_are_positions(clips):
    "Two tables, one below the other, have each row name twice"
    df = pd.concat([rows(clips, ('0.wav','ab')), rows(clips, ('2.wav','b'), ('3.wav',''), ('4.wav','a'))])
    assert list(check_transcripts(df).row)==[2]
    with pytest.warns(AudioWarning): dls = SpeechDataLoaders.from_df(df, Tokens.letters(['ab']), front_end=False, sr=8000, drop_bad=True, bs=2)
    assert len(dls.train_ds)==3

def test_hour_long(clips):
    df = rows(clips, ('0.wav','ab'), ('7.wav','ab'), ('1.wav','c'))
    assert list(check_transcripts(df, max_dur=1.).problem)==['longer than 1 s: cut it at pauses'] and not len(check_transcripts(df))
    with pytest.raises(ValueError, match='row 1, 7.wav: longer than 1 s'): SpeechDataLoaders.from_df(df, Tokens.letters(['abc']), max_dur=1.)

def test_need(): assert [int(steps_needed(o)) for o in ([], [1], [1,1], [1,2,1], [1,1,1])]==[0,1,3,3,5]

# Strings of digits
@pytest.fixture(scope='module')
def digits(): return digit_files('starter')

def test_strings(digits):
    a,b = (digit_strings(digits, n=12, seed=3) for _ in range(2))
    assert all(torch.equal(plain(x), plain(y)) and s==t for (x,s),(y,t) in zip(a, b))
    assert [t for _,t in a]!=[t for _,t in digit_strings(digits, n=12, seed=4)]
    assert [t for _,t in digit_strings(digits.shuffle(), n=12, seed=3)]==[t for _,t in a]
    for x,t in a:
        assert 3<=len(t.split())<=7 and set(t.split())<=set(digit_words)
        assert isinstance(x, AudioTensor) and x.sr==load_audio(digits[0]).sr and len(x)==1

def test_strings_leave_the_generator_alone(digits):
    torch.manual_seed(1)
    a = torch.rand(1)
    torch.manual_seed(1)
    digit_strings(digits, n=2)
    assert torch.equal(torch.rand(1), a)

def test_strings_are_their_clips(digits):
    fs = digits.filter(lambda f: digit_speaker(f)=='slt')[:1]
    clip,sr = plain(load_audio(fs[0])),load_audio(fs[0]).sr
    (x,t),n = digit_strings(fs, n=1, n_digits=3, gap=0)[0],clip.shape[-1]
    assert torch.equal(plain(x), clip.repeat(1,3)) and t==' '.join([digit_words[int(digit_label(fs[0]))]]*3)
    x = plain(digit_strings(fs, n=1, n_digits=(3,3), gap=0.1)[0][0])
    assert x.shape[-1]==3*n+2*int(0.1*sr) and torch.equal(x[:,:n], clip) and x[:,n:n+int(0.1*sr)].abs().max()<=1e-3
    x = plain(digit_strings(fs, n=1, n_digits=(3,3), gap=-0.05)[0][0])
    assert x.shape[-1]==3*n-2*int(0.05*sr) and x.abs().max()<=clip.abs().max()*1.001
    assert digit_strings(fs, n=1, n_digits=(2,2), gap=-99)[0][0].shape[-1]==2*n-n//2

def test_strings_bad(digits):
    with pytest.raises(ValueError, match='got no recordings'): digit_strings([])
    for o in (0,3),(4,3),0:
        with pytest.raises(ValueError, match='the fewest first'): digit_strings(digits, n_digits=o)
    with pytest.raises(DataError, match='digit, speaker, take'): digit_strings(['hello.wav'])

# Targets
def test_pad():
    b = pad_text([texts([1,2,3]), texts([]), texts([4])])
    assert b.tolist()==[[1,2,3],[0,0,0],[4,0,0]] and b.lens.tolist()==[3,0,1] and b.dtype==torch.long
    assert b[1:].lens.tolist()==[0,1] and b[0].lens is None and b[torch.tensor([2,0])].lens.tolist()==[1,3] and b[:,:2].lens.tolist()==[3,0,1]
    assert pad_text([texts([])]).shape==(1,0)

def test_batches_join():
    a,b = pad_text([texts([1,2,3])]),pad_text([texts([4]), texts([5])])
    for c in torch.cat([a,b]),torch.cat((b,a), dim=0)[torch.tensor([2,0,1])]:
        assert isinstance(c, TensorText) and c.tolist()==[[1,2,3],[4,0,0],[5,0,0]] and c.lens.tolist()==[3,1,1]

def test_target_travels():
    b = pad_text([texts([1,2]), texts([3])])
    buf = io.BytesIO()
    torch.save(b, buf)
    buf.seek(0)
    for o in pickle.loads(pickle.dumps(b)),copy.deepcopy(b),b.to('cpu'),b.clone(),torch.load(buf):
        assert type(o) is TensorText and o.lens.tolist()==[2,1] and o.tolist()==b.tolist()

@quick
@given(st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_order_drops_nothing(n, bs, shuffle, seed):
    set_seed(seed)
    durs = torch.rand(n).tolist()
    dl = SpeechDL(list(range(n)), bs=bs, shuffle=shuffle, durs=durs, num_workers=0)
    got = dl.get_idxs()
    assert sorted(got)==list(range(n))
    if not shuffle: assert [durs[i] for i in got]==sorted(durs, reverse=True)

def test_similar_lengths_share():
    set_seed(0)
    durs = torch.rand(160).tolist()
    dl = SpeechDL(list(range(160)), bs=16, shuffle=True, durs=durs, num_workers=0)
    groups = torch.tensor([durs[i] for i in dl.get_idxs()]).view(-1,16)
    assert groups.std(1).mean() < 0.5*torch.tensor(durs).std()
    assert dl.get_idxs()!=dl.get_idxs() and dl.new().noise==dl.noise and dl.new().durs==durs

pairs = [(tone(0.3+0.05*i), 'abc'[:i%3+1]) for i in range(11)]
abc = Tokens.letters(['abc'])
kw = dict(front_end=FrontEnd(8000, n_mels=16), bs=4)

def test_loaders():
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, **kw)
    assert dls.tokens is abc and dls.device is not None
    for dl,want in zip(dls, (pairs[:7],pairs[7:])):
        got = [abc.decode(o) for b in dl for o in b[1]]
        assert sorted(got)==sorted(t for _,t in want)
    x,y = dls.valid.one_batch()
    assert isinstance(x, AudioSpectrogram) and isinstance(y, TensorText) and [abc.decode(o) for o in y]==[t for _,t in pairs[:6:-1]]
    assert x.shape[-1]==x.lens.max() and y.lens.tolist()==[len(t) for _,t in pairs[:6:-1]]

def test_few_items():
    "Fewer than a batch are one small batch; without validation there is a warning"
    with pytest.warns(AudioWarning, match='nothing to measure on'): dls = SpeechDataLoaders.from_items(pairs[:3], [], abc, **kw)
    assert [len(b[0]) for b in dls.train]==[3]
    with pytest.raises(ValueError, match='nothing to learn from'): SpeechDataLoaders.from_items([], pairs, abc)
    with pytest.raises(ValueError, match="outside the alphabet: 'z'"): SpeechDataLoaders.from_items([(tone(1), 'z')], pairs, abc)

def test_waveforms_and_rates():
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, front_end=False, sr=16000, bs=4)
    x,_ = dls.one_batch()
    assert isinstance(x, AudioTensor) and x.sr==16000 and x.shape[1]==1
    assert SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, bs=2).one_batch()[0].sr==16000

def test_other_recordings(clips):
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, **kw)
    df = rows(clips, ('0.wav','a'), ('5.wav','b'), ('3.wav','c'))
    (x,y), = dls.test_dl(df)
    assert [abc.decode(o) for o in y]==['b','c','a']
    assert len(dls.test_dl(list(df.file), with_labels=False).one_batch())==1 and len(dls.test_dl(pairs[:2]).dataset)==2

def test_own_block():
    block = DataBlock((AudioBlock(8000), TranscriptBlock(abc)), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter([0,1]))
    class Pair(tuple): "Not a sound with its rate"
    dls = SpeechDataLoaders.from_dblock(block, [Pair(o) for o in pairs], bs=4, num_workers=0)
    assert isinstance(dls.train, SpeechDL) and sum(len(b[0]) for b in dls.train)==9 and dls.tokens is abc

def test_workers(clips, tmp_path):
    df = pd.concat([rows(clips, *((f'{i}.wav','ab') for i in range(6))), rows(clips, ('6.wav','c'), ('7.wav','a'), split='valid')])
    dls = SpeechDataLoaders.from_df(df, abc, cache=tmp_path/'cache', num_workers=2, **kw)
    assert sorted(abc.decode(o) for b in dls.train for o in b[1])==['ab']*6 and len(list((tmp_path/'cache').glob('*.npy')))==6

def test_show(clips):
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, **kw)
    dls.valid.show_batch(max_n=3)
    assert [o.get_title() for o in plt.gcf().axes[:3]]==[t for _,t in pairs[:7:-1]]
    plt.close('all')
    b = dls.valid.one_batch()
    dls.valid.show_results(b, b[1], max_n=2)
    assert [o.get_title() for o in plt.gcf().axes[:2]]==[f'{t} → {t}' for _,t in pairs[:8:-1]]
    plt.close('all')

def test_bad_rows(clips):
    df = pd.concat([rows(clips, ('0.wav','ab'), ('1.wav','ab'), ('2.wav','')), rows(clips, ('3.wav','c'), split='valid'), rows(clips, ('no.wav','z'), split='test')])
    with pytest.raises(ValueError, match=r'1 of 4 recordings cannot be learnt from \(row 2, 2.wav: empty transcript\)'): SpeechDataLoaders.from_df(df, abc, **kw)
    with pytest.warns(AudioWarning, match='left out'): dls = SpeechDataLoaders.from_df(df, abc, drop_bad=True, **kw)
    assert len(dls.train_ds)==2 and len(dls.valid_ds)==1
    with pytest.raises(ValueError, match='expected split too'): SpeechDataLoaders.from_df(df.drop(columns='split'), abc)

# Error rates
def edits(a, b):
    row = list(range(len(b)+1))
    for i,x in enumerate(a):
        diag,row[0] = i,i+1
        for j,y in enumerate(b): diag,row[j+1] = row[j+1],min(row[j+1]+1, row[j]+1, diag+(x!=y))
    return row[-1]

spoken = st.lists(st.tuples(*[st.lists(st.sampled_from('one two oh six'.split()), max_size=7).map(' '.join)]*2), min_size=1, max_size=6)

@quick
@given(spoken)
def test_rates(ps):
    refs,hyps = zip(*ps)
    n = sum(len(o.split()) for o in refs)
    if not n:
        with pytest.raises(ValueError, match='references without a word'): wer(refs, hyps)
        return
    want = sum(edits(r.split(), h.split()) for r,h in ps)/n
    assert wer(refs, hyps)==pytest.approx(want)==jiwer.wer(list(refs), list(hyps))
    assert cer(refs, hyps)==pytest.approx(sum(edits(r, h) for r,h in ps)/sum(map(len, refs)))==jiwer.cer(list(refs), list(hyps))
    assert error_table(refs, hyps).n.sum()==pytest.approx(want*n)
    assert wer(refs, refs)==cer(refs, refs)==0 and not len(error_table(refs, refs))

def test_error_table():
    t = error_table(['a b c','a b'], ['a x c d','a x'])
    assert t.values.tolist()==[['substitute','b','x',2],['insert','','d',1]]
    assert error_table('a b', 'b').values.tolist()==[['delete','a','',1]]

@pytest.mark.parametrize('f', [wer, cer, error_table, wer_interval])
def test_unequal(f):
    with pytest.raises(ValueError, match='got 2 references and 1 hypotheses'): f(['a','b'], ['a'])

def test_rates_take_series():
    df = pd.DataFrame(dict(r=['a b','c'], h=['a','c']), index=[5,9])
    assert wer(df.r, df.h)==pytest.approx(1/3) and len(wer_interval(df.r, df.h, df.h))==2

def test_interval():
    rng = random.Random(0)
    refs = ['one two three four']*200
    hyps = [' '.join(w if rng.random()>0.1 else 'x' for w in r.split()) for r in refs]
    lo,hi = wer_interval(refs, hyps)
    sd = (0.1*0.9/800)**0.5
    assert lo < wer(refs, hyps) < hi and hi-lo==pytest.approx(3.92*sd, rel=0.25)
    assert wer_interval(refs, hyps)==(lo,hi)!=wer_interval(refs, hyps, seed=1) and wer_interval(refs, refs)==(0,0)
    assert np.ptp(wer_interval(refs, [r if i<100 else 'x' for i,r in enumerate(refs)], [i//20 for i in range(200)]))>0.4
    with pytest.raises(ValueError, match='a group for each'): wer_interval(refs, hyps, [1])

def test_interval_of_few():
    "One text, two, and groups whose names are those of columns, or missing"
    assert wer_interval(['a b'], ['a c'])==(0.5,0.5) and wer_interval(['a b','a'], ['a b','x'])==(0,1)
    refs,hyps = ['a b']*4,['a b','a c','a b','x y']
    want = wer_interval(refs, hyps, ['s','s','t','t'])
    assert all(wer_interval(refs, hyps, o)==want for o in ([0,0,1,1], [None,None,'t','t'], (('a',1),('a',1),('b',1),('b',1))))
    for f in wer_interval,wer:
        with pytest.raises(ValueError, match='without a word'): f([], [])

def test_metric_pools_batches():
    m = WER(list, abc)
    m.reset()
    assert m.value is None and m.name=='wer' and CER(list).name=='cer'
    for r,h in ((['ab','c'],['ab','x']), (['a'],['a b'])):
        m.accumulate(SimpleNamespace(y=pad_text([texts(abc.encode(o)) for o in r]), pred=h))
    assert m.value==wer(['ab','c','a'], ['ab','x','a b'])==pytest.approx(2/3)
    assert pickle.loads(pickle.dumps(WER(str.split, abc))).tokens==abc

class Deaf(nn.Linear):
    def forward(self, x): return plain(x).mean((1,2,3))

def heard(p): return ['ab' for _ in p]

def test_in_learner():
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, **kw)
    learn = Learner(dls, Deaf(1, 1), loss_func=lambda p,y,**kw: p.mean(), metrics=[WER(heard), CER(heard)])
    with learn.no_logging(): _,w,c = learn.validate()
    want = [t for _,t in pairs[7:]]
    assert w==pytest.approx(wer(want, ['ab']*4)) and c==pytest.approx(cer(want, ['ab']*4))
    with learn.no_logging(): _,y = learn.get_preds()
    assert [abc.decode(o) for o in y]==want  # In the order of the items, though batches go by length

# The one reader of tables, and other kinds of loaders
def test_tables_of_all_kinds(tmp_path):
    want = read_speech(write(tmp_path, 'file,text\na.wav,null\n\nsub/b.wav,007\n'))
    (tmp_path/'sub').mkdir()
    for o in 'a.wav','sub/b.wav': save_audio(tone(0.5), tmp_path/o)
    for s,enc in (('file;text\na.wav;null\nsub/b.wav;007\n','utf-8'), ('file\ttext\r\na.wav\tnull\r\nsub\\b.wav\t007\r\n','utf-16'), (',file,text\n0,a.wav , null\n1,sub/b.wav,007\n','utf-8')):
        assert read_speech(write(tmp_path, s, encoding=enc))[['file','text']].equals(want[['file','text']])

def test_weighted_batches():
    from fastai.data.load import fa_collate
    x,y = fa_collate([(tone(0.3), TensorText(tensor([1,2,3]))), (tone(0.2), TensorText(tensor([1])))])
    assert x.lens.tolist()==[round(.3*x.sr),round(.2*x.sr)] and y.lens.tolist()==[3,1] and isinstance(y, TensorText)

def test_interpretation_goes_by_items():
    "fastai asks for items by position and pairs what comes with losses: not the longest first"
    dls = SpeechDataLoaders.from_items(pairs[:5], pairs[5:], abc, **kw)
    items = dls.test_dl(pairs[5:], process=True)
    assert [abc.decode(o) for b in items for o in b[1]]==[t for _,t in pairs[5:]]

def test_metrics_of_one_epoch():
    "Rates are of the epoch's own answers: what was wrong before is forgotten"
    dls = SpeechDataLoaders.from_items(pairs[:7], pairs[7:], abc, **kw)
    def _better(p): return [abc.decode(o) if learn.epoch else '' for o in learn.y]
    learn = Learner(dls, Deaf(1, 1), loss_func=lambda p,y,**kw: learn.model.bias.sum(), lr=0., metrics=[WER(_better), CER(_better)])
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert [o[2:] for o in learn.recorder.values]==[[1,1],[0,0],[0,0]]
