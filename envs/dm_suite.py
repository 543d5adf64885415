"""dm_control's suite by ``env_id: "envs.dm_suite:dm_control/cheetah-run-v0"``, through shimmy.

Importing this module registers its environments, mended for current MuJoCo.
"""

from __future__ import annotations

from envs.compat import import_dm_control, import_package

import_dm_control()
import_package("shimmy")  # which registers them
