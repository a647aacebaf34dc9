"""From a policy and a pipeline to a bundle of engines: `export_bundle(pipe, policy, "bundle", ExportConfig(...))`."""

from cachesmith.export.bundling import Exported, export_bundle
from cachesmith.export.config import BuildConfig, ExportConfig
from cachesmith.export.job import parts_of

__all__ = ["BuildConfig", "ExportConfig", "Exported", "export_bundle", "parts_of"]
