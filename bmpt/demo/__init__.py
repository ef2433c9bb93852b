"""The demo: sixteen motions of simple shapes, a tiny CLIP that knows them, and a run from videos to
accuracy."""
