"""python -m dreamquant.cli"""

import sys

from dreamquant.cli import main

sys.exit(main())
