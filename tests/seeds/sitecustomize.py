"With this folder on the path, every seed of a run is another: PyTorch's are moved by the number in OTHER_SEED, as soon as PyTorch is there"
import importlib.abc, importlib.util, os, sys

class MoveSeeds(importlib.abc.MetaPathFinder):
    "Waits for the import of torch"
    def find_spec(self, name, path=None, target=None):
        if name!='torch': return
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda mod: (run(mod), move(mod))
        return spec

def move(torch):
    "Let `torch.manual_seed` count from OTHER_SEED"
    real,n = torch.manual_seed,1000*int(os.environ['OTHER_SEED'])
    torch.manual_seed = torch.random.manual_seed = lambda seed: real(int(seed)+n)

if os.environ.get('OTHER_SEED', '0')!='0': sys.meta_path.insert(0, MoveSeeds())
