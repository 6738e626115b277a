"Learn audio with fastai: lessons in notebooks, exported as a small library"
__version__ = "0.1.0"
