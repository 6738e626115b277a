"The repository itself: notebooks, modules and README in step, sizes, style figures, documentation, what an import costs"
import ast, importlib, inspect, json, re, runpy, statistics, subprocess, sys
from enum import Enum

import pytest
from chkstyle.core import ignored_line_len_token_spans, line_len_without_spans
from fastcore.docments import docments

import fastaudio_lite
from sync import diffs, root

nbs = sorted((root/'nbs').glob('*.ipynb'))
lessons = [o for o in nbs if o.name[0].isdigit()]
taught = [o for o in lessons if o.name < '30']  # later ones are tools
lib = root/'fastaudio_lite'
modules = sorted(o for o in lib.rglob('*.py') if o.name[0]!='_')
exported = [o for o in modules if o.name!='all.py']
def _id(o): return str(o.relative_to(root))
each_nb,each_lesson,each_taught = [pytest.mark.parametrize('fn', o, ids=_id) for o in (nbs, lessons, taught)]
each_module,each_exported = [pytest.mark.parametrize('fn', o, ids=_id) for o in (modules, exported)]

def _cells(fn, kind=None): return [c for c in json.loads(fn.read_text(encoding='utf-8'))['cells'] if kind in (None, c['cell_type'])]
def _source(c): return ''.join(c['source'])

# Notebooks
def test_in_step(): assert diffs()==[]

@each_nb
def test_ids(fn):
    "An id for each cell, once; an exported module names its cells by them, in order"
    ids = [c['id'] for c in _cells(fn)]
    assert len(set(ids))==len(ids)
    out = [o for o in exported if f'/{fn.name}.' in o.read_text(encoding='utf-8')]
    for mod in out:
        marks = re.findall(rf'^# %% .*/{fn.name} #(\S+)$', mod.read_text(encoding='utf-8'), re.M)
        assert marks==[o for o in ids if o in set(marks)]

@each_nb
def test_size(fn): assert fn.stat().st_size < 1_000_000

@each_lesson
def test_players(fn): assert sum(json.dumps(c['outputs']).count('<audio') for c in _cells(fn, 'code')) <= 6

@each_lesson
def test_recordings_are_credited(fn):
    "A saved page that plays recordings of people says whose they are, and so does NOTICE"
    out,text = json.dumps([c['outputs'] for c in _cells(fn, 'code')]),_source(_cells(fn, 'markdown')[-1])
    heard = {k:v for k,v in {'FSDD: 3000':'CC BY-SA 4.0', 'AN4: 1078':'Carnegie Mellon'}.items() if 'data:audio' in out and k in out}
    for o in ('NOTICE', 'README.md', 'data/README.md'): assert all(v in (root/o).read_text(encoding='utf-8') for v in heard.values())
    assert all(v in text for v in heard.values())

def _outputs(fn): return [o for c in _cells(fn, 'code') for o in c['outputs']]

@each_taught
def test_pictures(fn): assert any('image/png' in o.get('data', {}) for o in _outputs(fn)), 'run the notebook and save it'

@each_lesson
def test_no_errors(fn): assert not [o for o in _outputs(fn) if o['output_type']=='error']

@each_taught
def test_first_lines(fn):
    "Title, purpose and facts, which the README's table is drawn from"
    text = '\n\n'.join(map(_source, _cells(fn, 'markdown')[:3]))
    assert re.match('# .+\n\n> .+', text)
    assert re.search(r'^\*\*CPU time\*\*: .*\d.* on 2 cores.* · \*\*download\*\*: .+ · \*\*assumes\*\*: .+', text, re.M)

@each_nb
def test_links(fn):
    "Files that a page links to are there"
    links = re.findall(r'\]\(([^)\s#]+)', '\n'.join(map(_source, _cells(fn, 'markdown'))))
    assert not [o for o in links if not re.match('https?:', o) and not (fn.parent/o).exists()]

# Style
def _width(path, text):
    "Lines of code over 120, words in strings and comments not counted, as `chkstyle` does it"
    lines = text.splitlines()
    spans = ignored_line_len_token_spans(text, lines)
    return [f'{path}:{i}' for i,o in enumerate(lines, 1) if line_len_without_spans(o, spans.get(i, []))>120]

def test_width():
    wide = [o for fn in modules for o in _width(_id(fn), fn.read_text(encoding='utf-8'))]
    cells = [(f"{_id(fn)}#{c['id']}", _source(c)) for fn in nbs for c in _cells(fn, 'code')]
    assert wide + [o for name,src in cells if src[:1] not in '%!' for o in _width(name, src)] == []

def _body(f):
    "Lines of the body of `f`, docstring not counted"
    body = f.body[1:] if ast.get_docstring(f) is not None else f.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0

def test_function_lengths():
    funcs = [(fn.name, f) for fn in exported for f in ast.walk(ast.parse(fn.read_text(encoding='utf-8')))
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lens = sorted(_body(f) for _,f in funcs)
    assert [f'{m}:{f.name}' for m,f in funcs if _body(f)>40] == []
    assert statistics.median(lens) <= 4
    assert sum(o<=12 for o in lens) >= 0.9*len(lens)

# Structure
# Data flows downhill: a module imports only from those above it, lazily imported ones included
house = '''audio exercises datasets spectrogram augment data kinds layers training classifier export compat scale voices text
    asr.hmm asr.ctc asr.decode asr.transcribe benchmark cli'''.split()

def _name(fn): return '.'.join(fn.relative_to(lib).with_suffix('').parts)
def _row(name): return 'compat' if name.startswith('compat') else name  # fastaudio's own folders, on top of one module

def _target(node, fn):
    "The module of ours that an import in `fn` names, and what of it"
    dots = node.level and '.'.join(['fastaudio_lite', *fn.relative_to(lib).parts[:-1]][:len(fn.relative_to(lib).parts)-node.level+1])
    full = '.'.join(filter(None, [dots, node.module])) if node.level else node.module or ''
    return full.removeprefix('fastaudio_lite').removeprefix('.') if full.startswith('fastaudio_lite') else None

def _own_imports(fn):
    "(module, name) of all imports of ours in `fn`, wherever they stand"
    tree = ast.parse(fn.read_text(encoding='utf-8'))
    for o in ast.walk(tree):
        if isinstance(o, ast.ImportFrom) and (mod := _target(o, fn)) is not None:
            for a in o.names: yield (mod, a.name) if mod else (a.name, '')
        names = [a.name for a in o.names] if isinstance(o, ast.Import) else []
        if isinstance(o, ast.Call) and getattr(o.func, 'id', getattr(o.func, 'attr', ''))=='import_module':
            names = [a.value for a in o.args if isinstance(a, ast.Constant)]
        yield from ((k.partition('.')[2], '') for k in names if k.startswith('fastaudio_lite.'))

def test_house_is_complete(): assert set(house)=={_row(_name(o)) for o in exported}

@each_exported
def test_downhill(fn):
    "No import of a later lesson's module, and so no ring; names in the tables of `kinds` are no imports"
    row = _row(_name(fn))
    if row=='cli': return  # the only one that may know everything
    above = {*house[:house.index(row)], '__version__', '__file__'} | ({'all'} if row=='benchmark' else {'compat'} if row=='compat' else set())
    assert [o for o,_ in _own_imports(fn) if _row(o) not in above]==[]

@each_module
def test_private_names_stay_home(fn): assert [f'{m}.{k}' for m,k in _own_imports(fn) if k.startswith('_') and not k.startswith('__')]==[]

def _privates(fn):
    "Private names that the module `fn` defines"
    tree = ast.parse(fn.read_text(encoding='utf-8'))
    defs = {o.name for o in tree.body if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not getattr(o, 'decorator_list', None)}
    sets = {e.id for o in tree.body if isinstance(o, ast.Assign) for t in o.targets for e in ast.walk(t) if isinstance(e, ast.Name)}
    return {o for o in defs|sets if o[0]=='_' and o[:2]!='__'}

def test_one_meaning():
    "No two modules use one private name, so a reader need not ask which"
    where = {}
    for fn in exported:
        for k in _privates(fn): where.setdefault(k, []).append(_name(fn))
    assert {k:v for k,v in where.items() if len(v)>1}=={}

def test_tables():
    "Whatever the tables of `kinds` name is there, and is what it should be"
    from torch import nn
    from fastaudio_lite.kinds import Saved, kinds, name_in, named, networks
    for k,v in kinds.items(): assert issubclass(named(v), Saved) and name_in(kinds, named(v))==k
    assert networks.keys()<=kinds.keys()
    for table in networks.values():
        for k,v in table.items(): assert issubclass(named(v), nn.Module) and name_in(table, named(v))==k and callable(named(v).config)

# Documentation
def _public(fn):
    mod = importlib.import_module('.'.join(fn.relative_to(root).with_suffix('').parts))
    return {o:getattr(mod, o) for o in mod.__all__}

def _init(cls):
    "What documents the arguments of `cls`, if it takes any of its own"
    if issubclass(cls, Enum): return None
    if hasattr(cls, '__dataclass_fields__'): return cls
    return next((vars(cls)[o] for o in ('__init__', '__new__') if inspect.isfunction(vars(cls).get(o))), None)

def _is_dispatch(f): return hasattr(f, 'methods')  # plum's: fastai calls it, by type

def _own(f):
    "Names of the parameters that `f` itself declares, without those that `delegates` adds; fields of a dataclass"
    if inspect.isclass(f): return f.__dataclass_fields__
    code = inspect.unwrap(f).__code__
    return code.co_varnames[:code.co_argcount+code.co_kwonlyargcount]

def _undocumented(name, f, ret=True):
    doc,own = docments(f, full=True, returns=True),_own(f)
    params = [p for p in doc if p not in ('self', 'cls', 'return') and p in own and not doc[p].docment]
    lacks = ret and 'return' in doc and not doc['return'].docment and doc['return'].anno is not inspect.Signature.empty
    return [f'{name}({p})' for p in params] + [f'{name}->']*bool(lacks)

@each_exported
def test_documented(fn):
    "Public names have a docstring, their parameters and returns a docment"
    bad = []
    for name,o in _public(fn).items():
        if not callable(o) or _is_dispatch(o): continue
        if not inspect.getdoc(o): bad.append(name)
        if inspect.isclass(o): bad += _undocumented(name, i, ret=False) if (i := _init(o)) else []
        else: bad += _undocumented(name, o)
    assert bad==[]

def test_imports_declared():
    "Modules import what pyproject.toml lists, or what fastai brings"
    known = set('fastai torch torchaudio soundfile soxr safetensors librosa matplotlib timm jiwer onnx onnxruntime onnxscript huggingface_hub tokenizers numba flashlight ctc_beam_decoder accelerate fastaudio_lite'.split())
    brought = set('fastcore fasttransform plum numpy scipy pandas torchvision sklearn PIL IPython fastprogress packaging yaml psutil'.split())
    trees = [ast.parse(fn.read_text(encoding='utf-8')) for fn in modules]
    names = {a.name for t in trees for o in ast.walk(t) if isinstance(o, ast.Import) for a in o.names}
    names |= {o.module for t in trees for o in ast.walk(t) if isinstance(o, ast.ImportFrom) and not o.level}
    assert {o.split('.')[0] for o in names} - known - brought - set(sys.stdlib_module_names) == set()

# README
def test_readme():
    "README.md is what results/readme.py draws, tables included"
    r = runpy.run_path(str(root/'results'/'readme.py'))
    text = r['readme'](r['index']())
    assert (root/'README.md').read_text(encoding='utf-8')==text
    for fn in lessons: assert f'(nbs/{fn.name})' in text

@pytest.mark.parametrize('fn', sorted((root/'results').glob('[!.]*.json')), ids=_id)
def test_results(fn):
    "A figure says how it was made"
    d = json.loads(fn.read_text(encoding='utf-8'))
    assert 'seeds' in d
    for k in 'name metric value split seconds machine command date version'.split(): assert d.get(k) not in (None, ''), k
    assert d['name']==fn.stem

# What does not belong into a public repository
_text = '.py .ipynb .md .toml .txt .ini .yml .json .csv'.split()
_dirs = ['nbs', 'fastaudio_lite', 'tests', 'results', 'data', '.ci', '.github']

def _committed():
    files = [*root.iterdir(), *(o for d in _dirs for o in (root/d).rglob('*') if '.ipynb_checkpoints' not in o.parts)]
    return [o for o in files if o.is_file() and (o.suffix in _text or o.name in ('Makefile', 'run', 'LICENSE'))]

def test_no_local_paths():
    "No path of the machine that a page was made on"
    pat = re.compile(r'(?<![\w.~+/-])/(work|root|tmp|farm|home|Users|var/folders)/\w[^\s"\')]*')
    found = [f'{_id(fn)}: {m[0]}' for fn in _committed() for m in pat.finditer(fn.read_text(encoding='utf-8'))]
    assert found==[]

def test_no_large_files(): assert [_id(o) for o in _committed() if o.stat().st_size > 1_000_000] == []

# What an import costs
def _loads(code, *names):
    "Which of the modules `names` does `code` load, in a fresh Python?"
    code = f'import sys\n{code}\nprint(*[o for o in {names!r} if o in sys.modules], file=sys.stderr)'
    res = subprocess.run([sys.executable, '-c', code], cwd=root, text=True, capture_output=True)
    assert res.returncode==0, res.stderr
    return res.stderr.split()

def test_import_package(): assert _loads('import fastaudio_lite', 'torch', 'numpy', 'fastai', 'fastcore', 'matplotlib')==[]

def test_import_audio(): assert not _loads('import fastaudio_lite.audio', 'fastai.vision', 'torchvision', 'torchaudio', 'librosa')

def test_import_datasets(): assert _loads('import fastaudio_lite.datasets', 'torch', 'fastai', 'numpy', 'pandas', 'requests')==[]

def test_help_loads_no_torch():
    "So that `fastaudio-lite --help` answers in under a second"
    code = 'sys.argv = ["fastaudio-lite", "--help"]\nfrom fastaudio_lite.cli import main\ntry: main()\nexcept SystemExit: pass'
    assert _loads(code, 'torch', 'fastai', 'numpy', 'matplotlib', 'IPython')==[]

def test_version(): assert re.fullmatch(r'\d+\.\d+\.\d+', fastaudio_lite.__version__)
