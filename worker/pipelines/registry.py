"""Opens the pipeline that the settings name, and imports only that one.

`services/core/model/pipelines.py` lists them.
"""

import importlib
from dataclasses import replace

from services.core.model.errors import SettingsError
from services.core.model.pipelines import PIPELINES
from services.core.settings import Settings
from worker.model.directory import SAFETY_COMPONENTS, check_model_dir, read_index, with_sizes
from worker.pipeline import ModelUnusable, Pipeline, artefacts
from worker.pipelines import compiler, visible


def open_pipeline(settings: Settings) -> Pipeline:
    """Loads the pipeline PRESSWORK_PIPELINE on this process's device.

    Raises:
        SettingsError: its model directory or device is unusable.
    """
    compiler.keep_caches(artefacts(settings))  # before anything imports torch
    if settings.pipeline == "torch":
        settings = replace(settings, device=visible.show_only(settings.device))
    module = importlib.import_module(PIPELINES[settings.pipeline].module)
    pipeline: Pipeline = module.open_pipeline(settings)
    return pipeline


def model_name(settings: Settings) -> str:
    """The name of the model that the pipeline will serve, read without loading it.

    Raises:
        ModelUnusable: its model directory is unusable; the reason is one sentence.
    """
    always = PIPELINES[settings.pipeline].model
    if always is not None:
        return always
    try:
        folder = check_model_dir(settings.model_dir, SAFETY_COMPONENTS if settings.safety_checker else ())
        return with_sizes(folder, read_index(folder), settings.sizes).name
    except SettingsError as error:
        raise ModelUnusable(str(error)) from error
