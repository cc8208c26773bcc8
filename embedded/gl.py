"""What the renderer asks of OpenGL: one windowless context, programs, targets. Needs OpenGL 3.3 through EGL."""

import ctypes
import ctypes.util
from pathlib import Path
from typing import Any

import moderngl
import numpy as np

from embedded.body import Floats

SHADERS = Path(__file__).parent / "shaders"
SCENE_BLOCK_BYTES = 2 * 64 + 10 * 16  # the std140 block in common.glsl
SHADOW_PX = 512
MAX_VIEWS = 8  # pictures that are read back at once


_EGL_EXTENSIONS = 0x3055  # egl.h
_MAX_DEVICES = 64


def gpus() -> list[int]:
    """EGL's numbers of the devices that are hardware, or [0] where there is none.

    After EGL_EXT_device_enumeration and EGL_MESA_device_software. A number need not be CUDA's of the same GPU.
    """
    egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query, describe = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceStringEXT"))
    if not query or not describe:
        return [0]
    found, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int(0)
    ask = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    extensions = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)(describe)
    if not ask(_MAX_DEVICES, found, ctypes.byref(count)):
        return [0]
    known = [extensions(device, _EGL_EXTENSIONS) or b"" for device in found[: count.value]]
    return [i for i, names in enumerate(known) if b"EGL_MESA_device_software" not in names] or [0]


def open_context(device: int = 0) -> Any:
    """A context without a window: Mesa's llvmpipe on a CPU machine, the driver's on a GPU machine.

    Raises RuntimeError with what to install where EGL or the device is missing.
    """
    try:
        create: Any = moderngl.create_standalone_context  # its type hints leave out `backend`
        return create(backend="egl", require=330, device_index=device)
    except Exception as error:
        raise RuntimeError(
            f"no OpenGL 3.3 through EGL on device {device} ({error}); without a GPU's driver, on Debian or Ubuntu: "
            "apt-get install libegl1 libgl1-mesa-dri libgl1"
        ) from error


def program(context: Any, vertex: str, fragment: str) -> Any:
    """A program from shader files; `common.glsl` goes before both, `lighting.glsl` before fragments that shade."""
    common, lighting = (SHADERS / "common.glsl").read_text(), (SHADERS / "lighting.glsl").read_text()
    body = (SHADERS / fragment).read_text()
    linked = context.program(
        vertex_shader=common + (SHADERS / vertex).read_text(),
        fragment_shader=common
        + (lighting if "shade(" in body or "lit(" in body or "lit_quick(" in body else "")
        + body,
    )
    if "Scene" in linked:
        linked["Scene"].binding = 0
    return linked


def put(target: Any, **values: Any) -> None:
    """Sets uniforms; a name the compiler optimised away is skipped."""
    for name, value in values.items():
        uniform = target.get(name, None)
        if uniform is not None:
            uniform.write(np.ascontiguousarray(value, np.float32))


def perspective(fov_deg: float, near: float, far: float) -> Floats:
    """OpenGL's projection for a square picture, row-major."""
    f = 1 / np.tan(np.radians(fov_deg) / 2)
    matrix = np.zeros((4, 4), np.float32)
    matrix[0, 0] = matrix[1, 1] = f
    matrix[2] = (0, 0, (far + near) / (near - far), 2 * far * near / (near - far))
    matrix[3, 2] = -1
    return matrix


def look_at(eye: Floats, target: Floats) -> Floats:
    """World to camera, y up, row-major."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.array([back[2], 0.0, -back[0]])  # (0, 1, 0) × back
    right /= np.linalg.norm(right)
    (bx, by, bz), (rx, _, rz) = back, right
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = right, (by * rz, bz * rx - bx * rz, -by * rx), back  # up is back × right
    matrix[:3, 3] = -matrix[:3, :3] @ eye
    return matrix


def shadow_matrix(towards_light: Floats, center: Floats, reach: float) -> Floats:
    """World to the unit cube seen from a distant light, row-major."""
    view = look_at((center + 6 * towards_light).astype(np.float32), center)
    box = np.diag([1 / reach, 1 / reach, -1 / 6.0, 1]).astype(np.float32)
    box[2, 3] = -1.0  # depths 0…12 dm to -1…1
    half = np.eye(4, dtype=np.float32) * 0.5
    half[3, 3] = 1
    half[:3, 3] = 0.5
    return (half @ box @ view).astype(np.float32)


class Targets:
    """Frame buffers of one picture size: twice as large each way, `samples` a pixel, then averaged into `small`, where
    MAX_VIEWS pictures stand one over the other."""

    def __init__(self, context: Any, size_px: int, samples: int) -> None:
        big = (2 * size_px, 2 * size_px)
        self.size_px = size_px
        self.samples = context.framebuffer(
            [context.renderbuffer(big, 4, samples=samples)], context.depth_renderbuffer(big, samples=samples)
        )
        self.big = context.texture(big, 4)
        self.big.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self.big.repeat_x = self.big.repeat_y = False
        self.resolved = context.framebuffer([self.big])
        self.small = context.framebuffer([context.renderbuffer((size_px, MAX_VIEWS * size_px), 4)])
        self.shadow = context.depth_texture((SHADOW_PX, SHADOW_PX))
        self.shadow.compare_func = "<="
        self.shadow.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self.shadow.repeat_x = self.shadow.repeat_y = False
        self.shadow_buffer = context.framebuffer(depth_attachment=self.shadow)
