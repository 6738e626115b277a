"Bad lines, bad archives, bad folders and bad settings: each costs a sentence, and leaves nothing behind"
import errno, io, lzma, multiprocessing, os, re, shutil, signal, struct, subprocess, sys, tarfile, threading, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastaudio_lite import datasets
from fastaudio_lite.datasets import DataError, DataSet, OfflineError, digest, find_data, get_data, registry, settings, unpack, verify_data

sounds = {f'{i}.wav':os.urandom(50_000) for i in range(4)} # Random bytes do not compress

def zipped(members, top='toy-1/'):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w') as z:
        for k,v in members.items(): z.writestr(top+k, v)
    return f.getvalue()

def tarred(members, top='toy-1/', kind=tarfile.REGTYPE, **kwargs):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as t:
        for k,v in members.items():
            o = tarfile.TarInfo(top+k)
            o.size,o.type = len(v),kind
            for a,b in kwargs.items(): setattr(o, a, b)
            t.addfile(o, io.BytesIO(v))
    return f.getvalue()

class Server(BaseHTTPRequestHandler):
    "Serves `body`, from a byte on if asked and `ranges`, closing the line after `cut` bytes"
    def do_GET(self):
        s = self.server
        m = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')) if s.ranges else None
        start = int(m[1]) if m else 0
        s.asked.append(start)
        if s.endless: return self.flood()
        if s.status or start>=len(s.body): return self.answer(s.status or 416, b'', f'bytes */{len(s.body)}')
        self.answer(206 if m else 200, s.body[start:], f'bytes {start}-{len(s.body)-1}/{len(s.body)}')

    def answer(self, status, body, where):
        self.send_response(status)
        self.send_header('Content-Length', len(body))
        if self.server.ranges: self.send_header('Content-Range', where)
        self.end_headers()
        self.wfile.write(body[:self.server.cut])

    def flood(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True: self.wfile.write(bytes(2**20))

    def log_message(self, *args): pass

@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    s.body,s.cut,s.ranges,s.status,s.endless,s.asked = zipped(sounds),None,True,None,False,[]
    threading.Thread(target=partial(s.serve_forever, poll_interval=.01), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

@pytest.fixture
def root(tmp_path, monkeypatch, server):
    "An empty folder as data path, and a data set `toy` that `server` serves"
    for k in list(os.environ):
        if k.startswith('FASTAUDIO_LITE_'): monkeypatch.delenv(k)
    src,res = tmp_path/'src',tmp_path/'data'
    src.mkdir()
    for k,v in sounds.items(): (src/k).write_bytes(v)
    url = f'http://127.0.0.1:{server.server_port}/toy.zip'
    toy = DataSet('toy', 'four noises', url, len(server.body), 'CC0', '*.wav', 4, digest(src.iterdir(), src))
    monkeypatch.setitem(registry, 'toy', toy)
    monkeypatch.setenv('FASTAUDIO_LITE_DATA_PATH', str(res))
    return res

def left(root): return sorted(o.name for o in root.iterdir()) if root.is_dir() else []
def parts(root): return [o for o in left(root) if o.endswith('.part')]
def change(monkeypatch, **kwargs): monkeypatch.setitem(registry, 'toy', replace(registry['toy'], **kwargs))

@contextmanager
def says(*words, exc=DataError):
    "Fail with `exc` and one sentence that holds `words`"
    with pytest.raises(exc) as e: yield
    msg = str(e.value)
    for o in words: assert o in msg, msg
    assert '\n' not in msg

def test_get_finds_verifies_and_is_silent_after(root, server, capsys):
    assert get_data('toy')==root/'toy' and left(root)==['toy']
    assert {o.name:o.read_bytes() for o in (root/'toy').iterdir()}==sounds
    out = capsys.readouterr().out
    assert 'CC0' in out.splitlines()[0] and '200 kB' in out.splitlines()[0] # Size and licence come first
    assert get_data('toy')==root/'toy'==verify_data('toy') and len(server.asked)==1 and not capsys.readouterr().out

def test_tar(root, server):
    server.body = tarred(sounds)
    assert len(list(get_data('toy').iterdir()))==4

def test_cut_line_resumes(root, server):
    server.cut = 120_000
    with says('cut after 120 kB', 'toy', exc=OfflineError): get_data('toy')
    assert left(root)==parts(root) and len(left(root))==1
    server.cut = None
    get_data('toy')
    assert server.asked==[0,120_000] and left(root)==['toy']

def test_server_without_ranges_starts_again(root, server):
    server.ranges,server.cut = False,70_000
    with says(exc=OfflineError): get_data('toy')
    server.cut = None
    get_data('toy')
    assert left(root)==['toy']

def test_complete_part_is_not_fetched_again(root, server, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(datasets, '_install', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): get_data('toy')
    get_data('toy')
    assert server.asked==[0,len(server.body)] and left(root)==['toy']

def test_part_longer_than_the_file_starts_again(root, server):
    server.cut = 10
    with says(exc=OfflineError): get_data('toy')
    (root/parts(root)[0]).write_bytes(bytes(len(server.body)+5))
    server.cut = None
    get_data('toy')
    assert left(root)==['toy']

def test_ctrl_c_in_the_stream_leaves_the_part(root, server, monkeypatch):
    real = datasets._chunks
    def interrupted(*args):
        yield next(real(*args))
        raise KeyboardInterrupt
    monkeypatch.setattr(datasets, '_chunks', interrupted)
    with pytest.raises(KeyboardInterrupt): get_data('toy')
    assert left(root)==parts(root) and (root/left(root)[0]).stat().st_size==2**16
    monkeypatch.setattr(datasets, '_chunks', real)
    get_data('toy')
    assert server.asked==[0,2**16] and left(root)==['toy']

def test_ctrl_c_while_unpacking_leaves_the_part(root, monkeypatch):
    monkeypatch.setattr(datasets, '_verify', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): get_data('toy')
    assert left(root)==parts(root) and len(left(root))==1

@pytest.mark.parametrize('body', [b'<html>not an archive</html>', zipped(sounds)[:-3000], tarred(sounds)[:-3000], tarred(sounds)[:100]],
    ids=['html','zip','tar','start'])
def test_corrupt_archive(root, server, body):
    server.body = body
    with says('damaged'): get_data('toy')
    assert left(root)==[]

@pytest.mark.parametrize('pack', [zipped, tarred])
def test_flipped_byte(root, server, pack):
    b = bytearray(pack(sounds))
    b[60_000] ^= 1
    server.body = bytes(b)
    with says(exc=DataError): get_data('toy')
    assert left(root)==[]

@pytest.mark.parametrize('name', ['../evil.wav', '/evil.wav', 'a/../../../evil.wav', '..\\evil.wav', 'C:\\evil.wav', 'C:/evil.wav'])
@pytest.mark.parametrize('pack', [zipped, tarred])
def test_members_that_climb(root, server, tmp_path, name, pack):
    server.body = pack({'toy/a.wav':b'x', name:b'x'}, top='')
    with says('outside its folder'): get_data('toy')
    assert left(root)==[] and not list(tmp_path.rglob('evil*'))

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices(root, server, kind):
    server.body = tarred({'a.wav':b''}, kind=kind, linkname='/etc/passwd')
    with says('link or device'): get_data('toy')
    assert left(root)==[]

def test_zip_link(tmp_path):
    o = zipfile.ZipInfo('top/a.wav')
    o.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(o, '/etc/passwd')
    with says('link or device'): unpack(tmp_path/'x.zip', tmp_path/'out')

@pytest.mark.parametrize('pack', [zipped, tarred])
def test_too_large(tmp_path, pack):
    (tmp_path/'x').write_bytes(pack({'a.wav':bytes(3_000_000)}))
    with says('more than was expected'): unpack(tmp_path/'x', tmp_path/'out', limit=2_000_000)

def test_wrong_checksum(root, monkeypatch):
    change(monkeypatch, checksum='0'*64)
    with says('checksum', '000000000000'): get_data('toy')
    assert left(root)==[]

def test_wrong_archive_checksum(root, monkeypatch):
    change(monkeypatch, archive_sha='0'*64)
    with says("archive has checksum"): get_data('toy')
    assert left(root)==[]

def test_wrong_count(root, monkeypatch):
    change(monkeypatch, n_files=5)
    with says('has 4 files', 'expected 5'): get_data('toy')

def test_changed_file_is_noticed(root):
    get_data('toy')
    (root/'toy'/'0.wav').write_bytes(b'x')
    with says('checksum'): verify_data('toy')
    (root/'toy'/'0.wav').unlink()
    with says('3 files'): verify_data('toy')

def labelled(root, monkeypatch):
    get_data('toy')
    (root/'toy'/'texts.csv').write_text('0.wav,one')
    change(monkeypatch, labels='*.csv', checksum=digest((root/'toy').iterdir(), root/'toy'))
    return root/'toy'/'texts.csv'

def test_changed_label_is_noticed(root, monkeypatch):
    fn = labelled(root, monkeypatch)
    verify_data('toy')
    fn.write_text('0.wav,two')
    with says('checksum'): verify_data('toy')
    fn.unlink()
    with says('no *.csv'): verify_data('toy')

def test_changed_starter_is_noticed(root, tmp_path):
    path = shutil.copytree(verify_data('starter'), tmp_path/'starter')
    for fn in (path/'voices.csv', path/'speech'/'transcripts.csv'):
        was = fn.read_bytes()
        fn.write_bytes(was.replace(b'train', b'test', 1))
        with says('git checkout'): verify_data('starter', path)
        fn.write_bytes(was)

def test_no_digest_is_said(root, monkeypatch, capsys):
    change(monkeypatch, checksum=None)
    get_data('toy')
    assert 'not compared' in capsys.readouterr().out

def test_offline_setting(root, server, monkeypatch):
    monkeypatch.setenv('FASTAUDIO_LITE_OFFLINE', 'yes')
    with says('toy', '200 kB', 'CC0', server.body and 'toy.zip', str(root/'toy'), 'offline', exc=OfflineError): get_data('toy')
    assert not server.asked and not root.exists()

def test_no_server(root, monkeypatch):
    change(monkeypatch, url='http://127.0.0.1:9/toy.zip')
    with says('download failed', '200 kB', str(root/'toy'), exc=OfflineError): get_data('toy')
    assert left(root)==[]

@pytest.mark.parametrize('status', [404, 503])
def test_server_refuses(root, server, status):
    server.status = status
    with says('download failed', exc=OfflineError): get_data('toy')

def test_file_in_place_of_folder(root):
    root.write_text('')
    with says(str(root), 'data_path'): get_data('toy')
    assert root.read_text()==''

def test_unwritable_folder(root, monkeypatch):
    def denied(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(Path, 'mkdir', denied)
    with says('cannot write', 'Permission denied', 'data_path'): get_data('toy')

def test_unreadable_folder(root, monkeypatch):
    real = Path.exists
    def denied(self, **kwargs):
        if self==root/'toy': raise PermissionError(errno.EACCES, 'Permission denied')
        return real(self, **kwargs)
    monkeypatch.setattr(Path, 'exists', denied)
    with says('Permission denied', 'data_path'): get_data('toy')

def test_somebody_else_was_faster(root, monkeypatch):
    real = datasets._verify
    def slow(ds, path):
        (root/'toy').mkdir()
        (root/'toy'/'0.wav').write_bytes(b'theirs')
        return real(ds, path)
    monkeypatch.setattr(datasets, '_verify', slow)
    assert get_data('toy')==root/'toy' and left(root)==['toy'] and (root/'toy'/'0.wav').read_bytes()==b'theirs'

def test_folder_without_sounds_is_not_overwritten(root, server):
    (root/'toy').mkdir(parents=True)
    (root/'toy'/'notes.txt').write_text('mine')
    with says('move it away'): get_data('toy')
    assert (root/'toy'/'notes.txt').read_text()=='mine' and not server.asked

@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize('where', ['_copy', '_chunks'])
def test_disk_full(root, monkeypatch, where, code):
    def full(*args): raise OSError(code, os.strerror(code))
    with monkeypatch.context() as m:
        m.setattr(datasets, where, full)
        with says('disk is full', 'data_path'): get_data('toy')
    assert left(root)==parts(root)
    assert get_data('toy')==root/'toy' and left(root)==['toy']

strange = [UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad'), KeyError('x'), struct.error('short'), lzma.LZMAError('corrupt'), MemoryError(),
    OSError(errno.EINVAL, 'Invalid argument'), OSError(errno.ENAMETOOLONG, 'File name too long'), AssertionError()]

@pytest.mark.parametrize('exc', strange, ids=lambda o: type(o).__name__)
def test_strange_damage_does_not_stick(root, server, monkeypatch, exc):
    def bad(*args): raise exc
    with monkeypatch.context() as m:
        m.setattr(datasets, '_copy', bad)
        with says('damaged'): get_data('toy')
    assert left(root)==[]
    assert get_data('toy')==root/'toy' and server.asked==[0,0]

@pytest.mark.parametrize('pack', [zipped, tarred])
def test_file_that_is_a_folder_too(root, server, pack):
    server.body = pack({'a.wav':b'x', 'a.wav/b.wav':b'x'})
    with says('damaged'): get_data('toy')
    assert left(root)==[]

def test_archive_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): unpack(tmp_path/'x.zip', tmp_path/'out')

def test_server_that_never_stops(root, server):
    server.endless = True
    with says('expected about 200 kB'): get_data('toy')
    assert left(root)==[]
    server.endless = False
    assert get_data('toy')==root/'toy'

def test_server_that_announces_too_much(root, server):
    server.body += bytes(2*10**7)
    with says('got 20 MB', 'expected about 200 kB'): get_data('toy')
    assert left(root)==[]

# Others at the same time, and what the killed leave
def test_two_at_once(root, server, monkeypatch, capsys):
    real = datasets._chunks
    def slow(*args):
        for o in real(*args):
            time.sleep(.05)
            yield o
    monkeypatch.setattr(datasets, '_chunks', slow)
    with ThreadPoolExecutor(3) as ex: got = [*ex.map(get_data, ['toy']*3)]
    assert got==[root/'toy']*3 and left(root)==['toy'] and server.asked==[0]
    assert 'waiting' in capsys.readouterr().out

def test_after_the_first_failed_the_second_tries(root, server, monkeypatch):
    real,tries = datasets._install,[]
    def first_fails(*args):
        tries.append(args)
        time.sleep(.2)
        if len(tries)==1: raise DataError('damaged')
        return real(*args)
    monkeypatch.setattr(datasets, '_install', first_fails)
    with ThreadPoolExecutor(2) as ex: res = [o.exception() for o in [ex.submit(get_data, 'toy') for _ in range(2)]]
    assert sorted(map(str, res))==['None', 'damaged'] and left(root)==['toy']

def test_where_nothing_can_be_locked(root, monkeypatch):
    def no(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(datasets.fcntl, 'flock', no)
    assert get_data('toy')==root/'toy' and left(root)==['toy']
    monkeypatch.setattr(datasets, 'fcntl', None)
    assert get_data('toy')==root/'toy'

def _die(where, sig):
    def die(*args):
        os.kill(os.getpid(), sig)
        time.sleep(10)
    setattr(datasets, where, die)
    get_data('toy')

@pytest.mark.parametrize('sig', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('where', ['_copy', '_verify'])
def test_killed_while_unpacking(root, sig, where):
    p = multiprocessing.get_context('fork').Process(target=_die, args=(where, sig))
    p.start()
    p.join()
    assert p.exitcode==-sig and len(left(root))==2
    assert get_data('toy')==root/'toy' and left(root)==['toy']

def test_leftovers_of_a_set_that_is_there(root):
    "Killed after the new folder got its name, and before the rest was gone; another set clears them too"
    get_data('toy')
    (root/'.toy-unpacking-x').mkdir()
    datasets._part_file(registry['toy'], root).write_bytes(b'x')
    with says(exc=OfflineError), pytest.MonkeyPatch.context() as m:
        m.setenv('FASTAUDIO_LITE_OFFLINE', 'yes')
        get_data('esc50')
    assert left(root)==['toy']

def test_a_copy_in_work_is_left_alone(root):
    (root/'.toy-unpacking-x').mkdir(parents=True)
    with datasets.alone(datasets._part_file(registry['toy'], root)): datasets._sweep(root)
    assert left(root)==['.toy-unpacking-x']

def test_every_folder_is_searched(root, tmp_path, monkeypatch):
    get_data('toy')
    monkeypatch.setenv('FASTAUDIO_LITE_DATA_PATH', os.pathsep.join([str(tmp_path/'none'), str(root)]))
    assert find_data('toy')==root/'toy'==get_data('toy')

def ini(d, text):
    (d/'settings.ini').write_text(text)
    return settings(d)

def test_settings_file(tmp_path, root, monkeypatch):
    monkeypatch.delenv('FASTAUDIO_LITE_DATA_PATH')
    s = ini(tmp_path, f'[fastaudio_lite]\ndata_path = a{os.pathsep}/b\noffline = on\nsr = 8000\ndevice = cuda:1\n')
    assert (s.data_path, s.offline, s.sr, s.device)==([tmp_path/'a',Path('/b')], True, 8000, 'cuda:1')
    (tmp_path/'x/y').mkdir(parents=True)
    assert settings(tmp_path/'x/y')==s

def test_settings_of_others_are_skipped(tmp_path, root):
    (tmp_path/'x').mkdir()
    (tmp_path/'settings.ini').write_text('[fastaudio_lite]\nsr = 8000')
    assert ini(tmp_path/'x', '[DEFAULT]\nlib_name = other').sr==8000

@pytest.mark.parametrize('text,words', [('datapath = x', ("'datapath'", 'known ones are data_path, offline, sr, device')), ('sr = fast', ("'fast'", 'Hz')),
    ('sr = -1', ("'-1'",)), ('offline = perhaps', ('yes or no',)), ('device = tpu', ('cuda',)), ('data_path =', ('folders',)), ('nonsense', ('no settings file',))])
def test_bad_settings(tmp_path, root, monkeypatch, text, words):
    monkeypatch.delenv('FASTAUDIO_LITE_DATA_PATH')
    with says(*words): ini(tmp_path, '[fastaudio_lite]\n'+text)

def test_unknown_environment_key(root, monkeypatch):
    monkeypatch.setenv('FASTAUDIO_LITE_DATAPATH', 'x')
    with says('datapath', 'known ones are'): settings()

def test_unknown_name(root):
    with says("'fsd'", 'fsdd', 'esc10', 'an4'): get_data('fsd')

def test_registry_is_whole(root):
    for o in registry.values(): assert o.licence and o.size and o.n_files and (o.url.startswith('http') or o.name=='starter')
    assert verify_data('starter').name=='starter'

@pytest.mark.real
@pytest.mark.parametrize('name', registry)
def test_sets_at_hand(name):
    if not find_data(name): pytest.skip(f'{name} is not on the data path')
    assert verify_data(name)==find_data(name)

def python(code, **env):
    "What a fresh Python prints that runs `code`; it does not know what ours has set already"
    env = {k:v for k,v in os.environ.items() if k!='ORT_DISABLE_TELEMETRY'} | env
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env).stdout.strip()

def test_import_is_cheap():
    assert python('import sys, fastaudio_lite.datasets; print(sorted({"torch","fastai","requests","pandas","librosa"} & set(sys.modules)))')=='[]'

def test_imports_ask_nobody(tmp_path):
    "What we import where it is installed looks up no name, and writes no number of this machine under its home"
    names = 'onnxruntime onnx huggingface_hub tokenizers'.split() # The others import these and torch
    code = f"""import importlib, socket, fastaudio_lite
from contextlib import suppress
asked = []
def look_up(name, *args, **kwargs):
    asked.append(name)
    raise OSError(name)
for o in ('getaddrinfo', 'gethostbyname', 'create_connection'): setattr(socket, o, look_up)
for o in {names}:
    with suppress(ModuleNotFoundError): importlib.import_module(o)
print(asked)"""
    env = {k:str(tmp_path) for k in ('HOME', 'USERPROFILE', 'XDG_CACHE_HOME', 'LOCALAPPDATA')}
    assert python(code, **env)=='[]'
    assert not [o for o in tmp_path.rglob('*') if o.name in ('deviceid', 'onnxruntime.db')]
