"Draw the tables of lessons and results into nbs/index.ipynb, and README.md from it"
import json, re
from pathlib import Path
from posixpath import normpath

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'

# What a benchmark is called, and what others reach on the same data and split. Where a figure is from: nbs/32_benchmark.ipynb
fsdd = ('Spoken digits: FSDD, its official test takes (of the same six people as in training), accuracy in %',
    'wavelet scattering + logistic regression (kymatio) 98.0; hidden Markov models, 6 states of 3 Gaussians 97.3')
esc10 = ('Sounds of the surroundings: ESC-10, its official five folds, trained from scratch, accuracy in %',
    'people 95.7; EnvNet-v2 with between-class learning and augmentation, ten pieces a clip 91.4 (without both 85.8); EnvNet 87.2; random forest on MFCCs 72.7')
frontend = ('Log-mel features of 64 clips of 5 s, time where torchaudio is 1.0 (in brackets: 1 clip of 5 s, 64 of 1 s)',
    'asrfront (C) 0.11 (0.23, 0.26); librosa 0.78 (1.67, 3.90); nnAudio 1.2 (2.5, 2.1); kaldi-native-fbank 3.0 (7.5, 7.1)')
an4 = 'AN4, official test (130 utterances, 10 unheard speakers), trained from scratch on its 50 minutes and its pronouncing dictionary'
an4_ctc = (f'{an4}: word error rate in %, no language model', 'Kaldi monophones with a language model 10.6; ESPnet Transformer 7.6; NeMo toy transducer 10-12')
an4_lm = (f'{an4}: word error rate in %, 4-grams of the training transcripts', 'Kaldi, speaker-adapted 5.95; ESPnet Transformer 7.4')
phone = ('The same over a telephone (8 kHz, 300-3400 Hz, 8-bit mu-law), word error rate in %, no language model', '')
to_fsdd = ('Trained on AN4, tested on 200 strings of FSDD digits with a lexicon of digits: word error rate in %', 'pocketsphinx with a digit grammar 33')
digits = ("Strings of 3-7 FSDD digits, with gaps and overlapping, official takes (in brackets: a speaker left out), by the recognizer of AN4 trained further on FSDD: word error rate in %", 'pocketsphinx with a digit grammar 33 (gaps only)')
digits_hmm = ('The same strings by hidden Markov models in a loop of words, trained on FSDD alone: word error rate in %', 'pocketsphinx with a digit grammar 33 (gaps only)')
hmm = ('Spoken digits by hidden Markov models: FSDD, official test takes (in brackets: a speaker left out), accuracy in %',
    'hmmlearn, 6 states of 3 Gaussians 97.3 (10 states of one: 85.5)')
decode = ('CTC beam search without a language model, beam 50: utterances a second where flashlight is 1.0',
    'ctc-beam-decoder 0.22, plain Python 0.02; of 200 best texts flashlight gives all alike, ctc-beam-decoder 197 (into three words it puts a space), with 4-grams all')
strangers = "Spoken digits of a stranger: each of FSDD's six speakers left out of training, accuracy in % (in brackets: the worst speaker"
loso = (f'{strangers}); FSDD alone', 'hidden Markov models 85.5 (70.8; ours 89.5)')
loso_extra = (f"{strangers}; three trainings together); AN4's words and the digits of synthetic voices learned first (8 minutes a seed, not in the seconds)", '')
zero = ('The same, trained on no recording of FSDD: all 3,000, accuracy in % (in brackets: the worst speaker)', 'pocketsphinx with a digit grammar 75-76')
fly = ('Spectrograms on the fly: what they add to an epoch for which they lie ready, in % of it', '')
throughput = ('Training on digits at 8 kHz: clips a second through forward, backward and a step of AdamW, float32, 1 thread', '')
long_sets = ('Long sets: an epoch over 100,000 clips of 1 s, processor time a clip where 10,000 clips are 1.0', '')
benchmarks = {'fsdd-official': fsdd, 'fsdd-loso': loso, 'fsdd-loso-extra': loso_extra, 'fsdd-zero': zero, 'esc10': esc10, 'hmm-digits': hmm,
    'an4-ctc': an4_ctc, 'an4-ctc-lm': an4_lm, 'an4-ctc-phone': phone, 'an4-to-fsdd': to_fsdd, 'digits-ctc': digits, 'digits-hmm': digits_hmm,
    'decode': decode, 'frontend': frontend, 'throughput': throughput, 'on-the-fly': fly, 'long-sets': long_sets}

def _row(*cols): return f"| {' | '.join(map(str, cols))} |"
def _table(head, rows): return '\n'.join([_row(*head), _row(*['---']*len(head)), *[_row(*o) for o in rows]])
def _source(cell): return ''.join(cell['source'])
def _cells(nb, kind): return [_source(c) for c in nb['cells'] if c['cell_type']==kind]
def _search(pat, text):
    m = re.search(pat, text, re.M)
    return m[1] if m else ''

def lesson(fn):
    "Number, linked title, purpose, module, time and download of the notebook `fn`, as its own first lines say"
    nb = json.loads(fn.read_text(encoding='utf-8'))
    text,code = ['\n\n'.join(_cells(nb, o)) for o in ('markdown', 'code')]
    facts = dict(re.findall(r'\*\*([^*]+)\*\*: (.*?)(?: · |$)', _search(r'^(\*\*CPU time\*\*: .*)', text)))
    time,download = facts.get('CPU time', '').split(' on ')[0],re.sub(r' \(.*', '', facts.get('download', ''))
    title,modules = _search(r'^# (.*)', text),re.findall(r'^#\| (?:default_exp|export) (\S+)', code, re.M)
    module = ', '.join(f'`{o}`' for o in dict.fromkeys(modules))
    return fn.name[:2], f'[{title}]({fn.name})', _search(r'^> (.*?)\.?$', text), module, time, download

def lessons():
    "The table of lessons"
    return _table(['', 'lesson', 'what it is about', 'module', 'time, 2 cores', 'download'],
        [lesson(o) for o in sorted(nbs.glob('[0-9]*.ipynb'))])

def figure(d):
    "Value and spread of one result, accuracies in percent; then the ratios of other shapes"
    k = 100 if d['metric'] in ('accuracy','wer','part of an epoch') and d['value']<=1 else 1
    more = [f'{o:.2f}' for o in list(d.get('ratios', {}).values())[:-1]]
    more += [f'{d[o]*k:.3g}' for o in ('loso','worst','together_mean') if o in d]
    res = f"**{round(d['value']*k, 2):g}**" + (f" ± {round(d['sd']*k, 2):g}" if d.get('sd') else '')
    return res + (f" ({', '.join(more)})" if more else '')

def _seeds(d):
    n = len(d['seeds']) if isinstance(d.get('seeds'), list) else d.get('seeds')
    return f'{n} seeds' if n and n>1 else ''

def _time(d):
    "What the benchmark took; beforehand, each training"
    mins = [o['train_seconds']/60 for o in d.get('runs', []) if isinstance(o, dict) and 'train_seconds' in o]
    if not mins: return f"{d['seconds']:.0f} s"
    span = ' to '.join(dict.fromkeys(f'{o:.0f}' for o in (min(mins), max(mins))))
    return f"{d['seconds']:.0f} s after {span} min of training each"

def result(name):
    "One row of the table of results"
    title,peers = benchmarks[name]
    fn = root/'results'/f'{name}.json'
    if not fn.exists(): return title, 'not measured yet', peers, ''
    d = json.loads(fn.read_text(encoding='utf-8'))
    how = [_seeds(d), _time(d), d.get('machine'), f"`{d['command']}`"]
    return title, figure(d), peers, ', '.join(o for o in how if o)

def results():
    "The table of results"
    return _table(['benchmark', 'ours', 'others', 'how'], [result(o) for o in benchmarks])

def fill(text):
    "`text` with the tables drawn between their marks"
    for f in (lessons, results):
        m = f.__name__
        text = re.sub(f'(<!-- {m} -->\n).*?(<!-- /{m} -->)', lambda o: f'{o[1]}\n{f()}\n\n{o[2]}', text, flags=re.S)
    return text

def index():
    "nbs/index.ipynb with its tables drawn"
    nb = json.loads((nbs/'index.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        if c['cell_type']=='markdown': c['source'] = fill(_source(c)).splitlines(True)
    return nb

def _link(m): return m[0] if re.match('https?:|#', m[1]) else f"]({normpath(f'nbs/{m[1]}')})"
def _markdown(cell): return _source(cell) if cell['cell_type']=='markdown' else f'```python\n{_source(cell)}\n```'

def readme(nb):
    "README.md of the index `nb`: its cells, with links that start at the root"
    note = '<!-- Made from nbs/index.ipynb by make sync: change it there -->\n\n'
    return note + re.sub(r'\]\(([^)\s]+)\)', _link, '\n\n'.join(map(_markdown, nb['cells']))) + '\n'

def dumps(nb):
    "`nb` as nbdev writes it"
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n'

if __name__=='__main__':
    nb = index()
    (nbs/'index.ipynb').write_text(dumps(nb), encoding='utf-8')
    (root/'README.md').write_text(readme(nb), encoding='utf-8')
