"""Skin tone as a shortcut to smiling: a classifier learns from faces of which those of one skin tone smile more often.

    python examples/bias/skin_tone.py [--strengths 0.5 0.7 0.9 1.0] [--seeds 3] [--out bias-skin-tone]

Prints how far dark skin moves faces along the units' axis of smiling, and how strongly the units encode skin tone, over
strengths and seeds, and draws both over epochs. At strength 0.5 as many of both skin tones smile: the balanced control,
which must stay quiet. Networks learn from close-ups, in which smiles are large enough. A run takes about a minute on
one core, after half a minute of drawing.
"""

from experiment import SKIN_TONE
from showing import main

if __name__ == "__main__":
    main(SKIN_TONE, __doc__ or "")
