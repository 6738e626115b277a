"What `from fastaudio.all import *` gave: fastaudio's names, and fastai's"
from fastai.vision.all import *
from fastaudio_lite.compat.fastaudio import *
