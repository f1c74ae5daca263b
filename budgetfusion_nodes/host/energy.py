"""Energy that the GPU itself counts, through NVIDIA's management library (NVML), which comes with the driver.

nvmlDeviceGetTotalEnergyConsumption counts millijoules since the driver was loaded (Volta and newer). It counts the
whole device, so other programs on it are included.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import Any

import torch

log = logging.getLogger(__name__)

MILLIJOULES_PER_WATT_HOUR = 3.6e6


def watt_hours(device: torch.device) -> float | None:
    """The device's counter; a difference of two is what was used between them. None where there is none."""
    if device.type != "cuda":
        return None
    try:
        counter = _counter(torch.cuda.current_device() if device.index is None else device.index)
        if counter is None:
            return None
        library, handle = counter
        found = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(found)) != 0:
            return None
        return found.value / MILLIJOULES_PER_WATT_HOUR
    except Exception as error:  # a line of the receipt must never stop a render
        log.debug("No energy reading: %s", error)
        return None


@functools.cache
def _counter(index: int) -> tuple[Any, Any] | None:
    """(the library, its handle of this device), looked for once."""
    try:
        library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return None
        # by its own id: CUDA_VISIBLE_DEVICES numbers devices otherwise than the driver
        name = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)) != 0:
            return None
        return library, handle
    except (OSError, AttributeError, RuntimeError) as error:  # no driver, an older library, ROCm
        log.debug("No energy counter for device %d: %s", index, error)
        return None
