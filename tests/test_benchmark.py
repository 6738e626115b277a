"Benchmarks: what was finished is kept when the rest is stopped"
import json, os, signal, subprocess, sys
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory

import pytest, torch
from hypothesis import given, settings, strategies as st

from fastaudio_lite import benchmark
from fastaudio_lite.audio import AudioTensor
from fastaudio_lite.benchmark import bench_esc10, bench_hmm_digits, each, esc10_run, esc10_sounds, write_result
from fastaudio_lite.classifier import AudioCNN
from fastaudio_lite.datasets import DataError, digit_files

a_key = st.one_of(st.integers(0, 9), st.text(max_size=3), st.tuples(st.integers(0, 3), st.text(max_size=3)))

@settings(max_examples=25, deadline=None)
@given(st.lists(a_key, min_size=1, max_size=8, unique=True), st.data())
def test_stopped(keys, data):
    "Wherever runs stop, the next call makes the rest and gives what an undisturbed one gives"
    seen,stops = [],data.draw(st.sets(st.integers(0, len(keys)-1)))
    def run(k):
        if len(seen) in stops and not stops.remove(len(seen)): raise KeyboardInterrupt
        seen.append(k)
        return dict(key=k)
    with TemporaryDirectory() as d:
        for _ in range(len(stops)):
            with pytest.raises(KeyboardInterrupt): each('x', keys, run, {}, Path(d))
        res,seconds = each('x', keys, run, {}, Path(d))
    assert seen==keys and seconds>0
    assert res==[dict(key=list(k) if isinstance(k, tuple) else k) for k in keys]

killed = '''
import os, signal, sys
from pathlib import Path
from fastaudio_lite.benchmark import each
def run(i):
    if i==2: os.kill(os.getpid(), signal.SIGKILL)
    return i
each('x', range(4), run, {}, Path(sys.argv[1]))
'''

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_killed(tmp_path, capsys):
    r = subprocess.run([sys.executable, '-c', killed, str(tmp_path)], capture_output=True, text=True)
    assert (r.returncode, r.stdout)==(-signal.SIGKILL, '')
    assert os.listdir(tmp_path)==['.x.part.json']
    seen = []
    assert each('x', range(4), lambda i: seen.append(i) or i, {}, tmp_path)[0]==[0,1,2,3]
    assert seen==[2,3] and '2 finished runs are kept' in capsys.readouterr().out

def test_settings_differ(tmp_path, capsys):
    for epochs in (1,2): assert each('x', [0], lambda k: epochs, dict(epochs=epochs), tmp_path)[0]==[epochs]
    assert capsys.readouterr().out=='got finished runs with epochs=1, expected 2: every run is made afresh\n'

def test_other_machine(tmp_path, monkeypatch):
    for o in 'ab':
        monkeypatch.setattr(benchmark, 'machine', lambda: o)
        assert each('x', [0], lambda k: o, {}, tmp_path)[0]==[o]

def test_damaged(tmp_path, capsys):
    (tmp_path/'.x.part.json').write_text('{"about"')
    assert each('x', [0], lambda k: k, {}, tmp_path)[0]==[0]
    assert 'damaged' in capsys.readouterr().out

def test_written(tmp_path):
    "Once the figure is there, nothing else is"
    each('x', [0], lambda k: k, {}, tmp_path)
    write_result('x', 'accuracy', 1., 1., 'all', path=tmp_path)
    assert os.listdir(tmp_path)==['x.json']

def test_speakers(tmp_path, monkeypatch):
    "A benchmark of several trainings, stopped in its middle"
    from fastaudio_lite.asr import hmm
    files,seen = digit_files('starter'),[]
    def fit(files, is_test):
        seen.append([o for o in files if is_test(o)])
        if len(seen)==2: raise KeyboardInterrupt
        return dict(accuracy=1., n=len(seen[-1]), seconds=1., wrong=[(files[0], 'one', 'two')])
    monkeypatch.setattr(hmm, 'digits_accuracy', fit)
    with pytest.raises(KeyboardInterrupt): bench_hmm_digits(tmp_path, files)
    res = bench_hmm_digits(tmp_path, files)
    assert len(seen)==len(res['speakers'])+2 and seen[1]==seen[2]
    assert json.loads((tmp_path/'hmm-digits.json').read_text())==res

@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "A dog that hums and a rooster that hisses: two clips of each in each of two folds, one too short, one too long"
    d,g = tmp_path_factory.mktemp('esc10'),torch.Generator().manual_seed(0)
    for k,name in enumerate(['001 - Dog bark','009 - Rooster']):
        (d/name).mkdir()
        for fold in (1,2):
            for i,dur in enumerate((4+fold,5)):
                x = torch.randn(1, 4000*dur, generator=g)*0.1 if k else torch.sin(torch.arange(4000*dur)*(0.4+0.1*i))[None]*0.5
                AudioTensor(x, sr=4000).save(d/name/f'{fold}-{100+i}-A.wav')
    return sorted(d.glob('*/*.wav'))

def test_esc10_sounds(clips, tmp_path):
    sounds,labels,folds = esc10_sounds(clips, 4000)
    assert {o.shape for o in sounds}=={(1,20000)} and all(o.lens is None and o.sr==4000 for o in sounds)
    assert labels==['Dog bark']*4+['Rooster']*4 and folds==[1,1,2,2]*2
    bad = tmp_path/'001 - Dog bark'/'6-x.wav'
    bad.parent.mkdir()
    copy(clips[0], bad)
    with pytest.raises(DataError): esc10_sounds([bad])

def test_esc10_is_repeatable_and_blind(clips, monkeypatch):
    "What is learned does not depend on what is tested on"
    import fastaudio_lite.all
    made,make = [],fastaudio_lite.all.audio_learner
    monkeypatch.setattr(fastaudio_lite.all, 'audio_learner', lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1])
    sounds,labels,folds = esc10_sounds(clips, 4000)
    a,b = [esc10_run(sounds, labels, folds, 2, 0, 2, bar=False) for _ in range(2)]
    assert a['wrong']==b['wrong'] and a['n']==4 and a['fold']==2
    other = [AudioTensor(torch.randn_like(o), sr=4000) if f==2 else o for o,f in zip(sounds, folds)]
    esc10_run(other, labels, folds, 2, 0, 2, bar=False)
    for x,y in zip(made[0].model.state_dict().values(), made[-1].model.state_dict().values()): assert torch.equal(x, y)

def test_esc10(clips, tmp_path):
    res = bench_esc10((0,1), 1, clips, tmp_path)
    assert json.loads((tmp_path/'esc10.json').read_text())==res
    assert [len(o) for o in res['accuracies']]==[2,2] and abs(sum(map(sum, res['accuracies']))/4-res['value'])<1e-4
    assert sum(res['confused'].values())==16-round(res['value']*16)

def _gradient(dtype):
    "Gradient of all weights of `AudioCNN` on a padded batch, and the running variances"
    torch.manual_seed(0)
    net,x,lens = AudioCNN(4),torch.randn(8, 1, 48, 60),torch.tensor([60,50,40,30]*2)
    with torch.autocast('cpu', dtype, enabled=dtype!=torch.float32): out = net(x, lens)
    out.float().logsumexp(1).sum().backward()
    return torch.cat([o.grad.flatten() for o in net.parameters()]), torch.cat([b.norm.running_var for b in net.blocks])

def test_bfloat16_step():
    "What `throughput` times learns the same in mixed precision"
    (a,v),(b,w) = map(_gradient, (torch.float32, torch.bfloat16))
    assert torch.cosine_similarity(a, b, 0)>0.95 and torch.allclose(v, w, rtol=0.02)
