"""Errors of the developer tools.

ToolError
├── PrerequisiteError     something a person must install first is missing or too old
├── CommandError          a command ended with an error
│   └── DownloadError     a package that the lists name could not be fetched
├── CacheError            an entry of the cache cannot be made or read
├── FuzzError             a fuzz target failed, or there is none of that name
└── InstallError          `make install` or `make uninstall` cannot go on
"""


class ToolError(Exception):
    """Base of every error that a developer tool reports in words and with status 1."""


class PrerequisiteError(ToolError):
    """Something that the tools do not install themselves is missing."""


class CommandError(ToolError):
    """A command that a tool ran ended with an error or could not be started."""


class DownloadError(CommandError):
    """A Debian package cannot be fetched; often because the package lists are older than the archive."""


class CacheError(ToolError):
    """The content-addressed cache cannot be used."""


class FuzzError(ToolError):
    """A fuzz target failed, or does not exist."""


class InstallError(ToolError):
    """An installation or its removal cannot go on."""
