"Benchmarks in small: that they run, split and count as they say"
import json
from shutil import copy

import pytest, torch

from fastaudio_lite.audio import AudioTensor
from fastaudio_lite.benchmark import *
from fastaudio_lite.datasets import DataError

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

def test_esc10_is_repeatable_and_blind(clips):
    sounds,labels,folds = esc10_sounds(clips, 4000)
    a,b = [esc10_run(sounds, labels, folds, 2, 0, 2, bar=False) for _ in range(2)]
    assert a['wrong']==b['wrong'] and a['n']==4 and a['fold']==2
    other = [AudioTensor(torch.zeros_like(o), sr=4000) if f==2 else o for o,f in zip(sounds, folds)]
    assert esc10_run(other, labels, folds, 2, 0, 1, bar=False)['accuracy']==0.5

def test_esc10(clips, tmp_path):
    res = bench_esc10((0,1), 1, clips, tmp_path)
    assert json.loads((tmp_path/'esc10.json').read_text())==res
    assert [len(o) for o in res['accuracies']]==[2,2] and abs(sum(map(sum, res['accuracies']))/4-res['value'])<1e-4
    assert sum(res['confused'].values())==16-round(res['value']*16)
