"""From a hand-over to a proved bundle per device profile: a search under gates."""

from edgeops.compiler.run import (
    CompileResult,
    Elsewhere,
    ProfileResult,
    Progress,
)
from edgeops.compiler.run import (
    compile_handover as compile,
)

__all__ = ["CompileResult", "Elsewhere", "ProfileResult", "Progress", "compile"]
