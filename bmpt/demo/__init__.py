"""The demo: sixteen motions of simple shapes, a tiny CLIP that was pretrained on them, and a run
from videos to accuracy."""
