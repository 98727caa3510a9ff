"""Add the addresses of the repository and its site to the metadata of a release."""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class RepositoryUrls(MetadataHookInterface):
    """Read `REPO_URL` and `SITE_URL`, which the release workflow sets; without them, add no address."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("REPO_URL", "").rstrip("/")
        site = os.environ.get("SITE_URL", "").rstrip("/")
        urls = {}
        if site:
            urls |= {"Documentation": site, "Changelog": f"{site}/changelog/"}
        if repository:
            urls |= {"Repository": repository, "Issues": f"{repository}/issues"}
        metadata["urls"] = urls
