"""Glasses as a shortcut to gender: a classifier learns from faces of which one gender wears glasses more often.

    python examples/bias/glasses.py [--strengths 0.5 0.7 0.9 1.0] [--seeds 3] [--out bias-glasses]

Prints how far glasses move faces along the units' axis of gender, over strengths and seeds, and draws it over epochs.
At strength 0.5 as many of both genders wear glasses: the balanced control, which must stay quiet. A run takes about ten
seconds on one core.
"""

from experiment import GLASSES
from showing import main

if __name__ == "__main__":
    main(GLASSES, __doc__ or "")
