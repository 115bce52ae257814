"""For all tests: hypothesis gives the same examples every time (make test must not depend on luck) and knows no
deadline (CI machines are slow). `HYPOTHESIS_PROFILE=search` looks for new examples."""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
