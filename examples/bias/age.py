"""Age as a shortcut to gender: a classifier learns from faces of which one gender is older.

    python examples/bias/age.py [--strengths 0.5 0.7 0.9 1.0] [--seeds 3] [--out bias-age]

Prints how far old age moves faces along the units' axis of gender, over strengths and seeds, and draws it over epochs.
At strength 0.5 as many of both genders are old: the balanced control, which must stay quiet. A run takes about ten
seconds on one core.
"""

from experiment import AGE
from showing import main

if __name__ == "__main__":
    main(AGE, __doc__ or "")
