"""``python -m recbole_adrrec``: training, as ``run_recbole.py`` does, and the commands beside it."""

import sys

from recbole_adrrec.cli import main

if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # Processes that --nproc spawns import this file under another name, and need our models.
    import recbole_adrrec

    recbole_adrrec.register()
