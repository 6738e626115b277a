"Learn audio with fastai: lessons in notebooks, exported as a small library"
import os
__version__ = "0.1.0"

# onnxruntime looks up a telemetry host and writes a device id when it is imported, unless this is set before. It stands
# here since this file runs before all of ours that import it; whoever sets the variable otherwise is heard.
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
