"Two processes that share each batch: the same losses, weights and answers as one process, from Python and from the command line"
import os, shutil, subprocess, sys
from pathlib import Path

import pandas as pd, pytest, torch, torch.nn as nn
from fastai.basics import Callback, set_seed
from fastai.torch_core import maybe_gather

from fastaudio_lite.all import *

pytest.importorskip('accelerate')
from fastaudio_lite.cli import main
from fastaudio_lite.scale import _names, fresh_cost, long_set, scaled

class Curve(Callback):
    "Keeps the loss of each batch, over all processes"
    losses,order = (),80
    def after_batch(self):
        if self.training: self.losses += (float(maybe_gather(self.loss.detach().as_subclass(torch.Tensor))),)

def unpadded():
    "A network with the batch norm of other libraries"
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def trained(model, bs, sounds=None):
    "What a training with batches of `bs` in each process gives: losses, numbers of the network, answers"
    files = get_audio_files(starter_path()/'digits'/'recordings')[::4]
    set_seed(1)
    dls = AudioDataLoaders.from_lists('.', sounds or list(files), list(map(digit_label, files)), seed=1, sr=8000, bs=bs, num_workers=0,
        front_end=FrontEnd(8000, n_mels=32, norm='clip'))
    learn = audio_learner(dls, model, cbs=Curve())
    with learn.no_bar(), learn.no_logging(), scaled(learn):
        learn.fit_one_cycle(3, 5e-3)
        preds,targs = learn.get_preds()
    state = {k:v.float() for k,v in learn.model.state_dict().items() if 'num_batches' not in k}
    return dict(losses=torch.tensor(learn.curve.losses), preds=preds, targs=targs.as_subclass(torch.Tensor), **state)

def both(n):
    "Trainings with a global batch of 32, on `n` processes"
    files = get_audio_files(starter_path()/'digits'/'recordings')[::4]
    short = [load_audio(o, 8000)[:,:1200] for o in files]
    torch.manual_seed(0)
    return trained(AudioCNN(10, chs=(8,16,32), p=0), 32//n),trained(unpadded(), 32//n, short)

def launch(*args, n=2, timeout=120):
    "Run `args` on `n` processes"
    cmd = [Path(sys.executable).with_name('accelerate'), 'launch', '--multi_gpu', '--num_processes', n, '--num_machines', 1,
        '--main_process_port', 0, '--mixed_precision', 'no', '--dynamo_backend', 'no', *args]
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]))
    return subprocess.run(list(map(str, cmd)), env=env, capture_output=True, text=True, timeout=timeout)

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes got, and what a command said there"
    d = tmp_path_factory.mktemp('two')
    for k in '147':
        (d/'clips'/k).mkdir(parents=True)
        for o in list((starter_path()/'digits'/'recordings').glob(f'{k}_*'))[::9]: shutil.copy(o, d/'clips'/k)
    res = launch(__file__, d)
    assert res.returncode==0, res.stderr
    return torch.load(d/'two.pt'),d,res.stdout

def test_same_as_one(two):
    for a,b in zip(both(1), two[0]):
        assert len(a['losses'])==15
        torch.testing.assert_close(a['losses'][:2], b['losses'][:2], atol=1e-5, rtol=1e-5)
        for k in a: torch.testing.assert_close(a[k], b[k], atol=5e-3 if k=='losses' else 2e-2, rtol=1e-2) # Adam divides by small gradients

def test_command(two):
    "Only the first process speaks and saves"
    _,d,said = two
    assert said.count('Right on')==1 and said.count('held-out accuracy')==2
    assert {o.name for o in (d/'models').iterdir()}=={'digits'}
    assert Classifier(d/'models'/'digits').predict(next((d/'clips').rglob('*.wav'))).label in '147'

def test_one_command_at_a_time(monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(['predict', 'a.wav'])==2 and 'got 2 processes' in capsys.readouterr().err

def test_long_sets(tmp_path):
    "Three thousand clips more, 96 MB of sound: no more memory than their names take"
    a,b = [fresh_cost(long_set(tmp_path/str(n), n)) for n in (300,3300)]
    assert (a['n'],b['n'])==(300,3300) and b['peak']-a['peak']<60

class Items:
    "As little of a data set as counts here"
    def __init__(self, items): self.items = items
    def __len__(self): return len(self.items)

def test_who_trains_on_what():
    "Data frames and sounds in memory are told apart by their clips"
    a,b = [Items(pd.DataFrame(dict(f=['x','y'], l=[0,1]), index=i)) for i in ([0,1],[1,2])]
    c,d = [Items([(torch.full((1,4), v), 'l')]) for v in (1.,2.)]
    assert _names(a)!=_names(b) and _names(c)!=_names(d)

if __name__=='__main__': # In each of the processes
    res,d = both(2),Path(sys.argv[1])
    if os.environ['RANK']=='0': torch.save(res, d/'two.pt')
    sys.exit(main(['train', d/'clips', '--out', d/'models'/'digits', '--epochs', 2, '--bs', 8, '--no-augment']))
