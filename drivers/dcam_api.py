"""DCAM-API 4 as Hamamatsu's headers dcamapi4.h and dcamprop.h declare it, as far as it is used.

Compared with the copies that pylablib 1.4.5 and olive-camera-dcamapi were made from.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int32, c_uint32, c_void_p
from typing import Any

import numpy as np

from tem_live.drivers.native import Prototypes

# dcamprop.h
TRIGGERSOURCE, TRIGGERSOURCE_INTERNAL = 0x00100110, 1
EXPOSURETIME = 0x001F0110
BINNING = 0x00401110
SUBARRAYHPOS, SUBARRAYHSIZE = 0x00402110, 0x00402120
SUBARRAYVPOS, SUBARRAYVSIZE = 0x00402130, 0x00402140
SUBARRAYMODE, OFF, ON = 0x00402150, 1, 2
TIMING_READOUTTIME = 0x00403010
INTERNAL_FRAMEINTERVAL = 0x00403820
FRAMESTAMP_PRODUCER, FRAMESTAMP_NONE = 0x00410A20, 1
BITSPERCHANNEL = 0x00420130
IMAGE_WIDTH, IMAGE_HEIGHT, IMAGE_PIXELTYPE = 0x00420210, 0x00420220, 0x00420270
SYSTEM_ALIVE, OFFLINE = 0x00FF0010, 1
NEXT_ID = 0
"""DCAMPROP_OPTION_SUPPORT: `dcamprop_getnextid` goes through what the camera has."""

# dcamapi4.h
MODEL, CAMERAID = 0x04000104, 0x04000102
FRAMEREADY, STOPPED = 0x0002, 0x0010
START_SEQUENCE = -1
PIXELTYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}
BINNINGS = (1, 2, 4, 8, 16)
TEXT_BYTES = 256
CODES = {
    0x80000101: "BUSY",
    0x80000102: "ABORT",
    0x80000103: "NOTREADY",
    0x80000106: "TIMEOUT",
    0x80000110: "EXCLUDED: another program has it",
    0x80000201: "NORESOURCE",
    0x80000203: "NOMEMORY",
    0x80000204: "NOMODULE",
    0x80000205: "NODRIVER",
    0x80000206: "NOCAMERA",
    0x80000207: "NOGRABBER",
    0x80000301: "LOSTFRAME",
    0x80000806: "INVALIDCAMERA",
    0x80000807: "INVALIDHANDLE",
    0x80000808: "INVALIDPARAM",
    0x80000821: "INVALIDVALUE",
    0x80000822: "OUTOFRANGE",
    0x80000823: "NOTWRITABLE",
    0x80000824: "NOTREADABLE",
    0x80000825: "INVALIDPROPERTYID",
    0x80000828: "NOPROPERTY",
    0x8000082C: "ACCESSDENY",
    0x8000082D: "NOVALUETEXT",
    0x8000082E: "WRONGPROPERTYVALUE",
    0x80000830: "DISHARMONY",
    0x80000833: "INVALIDFRAMEINDEX",
    0x80000F03: "NOTSUPPORT",
    0x80000F07: "NOCONNECTION",
    0x81001001: "FAILOPENBUS",
    0x82001001: "FAILOPENCAMERA",
    0x83001002: "FAILREADCAMERA",
    0x83001003: "FAILWRITECAMERA",
}
ABORT, TIMEOUT, LOSTFRAME = 0x80000102, 0x80000106, 0x80000301
REFUSALS = {0x80000101, 0x80000103, 0x80000110, 0x80000808, *range(0x80000821, 0x80000831)}
REFUSALS |= {0x80000F03}


class DcamInit(ctypes.Structure):
    """DCAMAPI_INIT."""

    _fields_ = (
        ("size", c_int32),
        ("iDeviceCount", c_int32),
        ("reserved", c_int32),
        ("initoptionbytes", c_int32),
        ("initoption", c_void_p),
        ("guid", c_void_p),
    )


class DcamOpen(ctypes.Structure):
    """DCAMDEV_OPEN."""

    _fields_ = (("size", c_int32), ("index", c_int32), ("hdcam", c_void_p))


class DcamString(ctypes.Structure):
    """DCAMDEV_STRING."""

    _fields_ = (("size", c_int32), ("iString", c_int32), ("text", c_void_p), ("textbytes", c_int32))


class DcamAttribute(ctypes.Structure):
    """DCAMPROP_ATTR."""

    _fields_ = (
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("option", c_int32),
        ("iReserved1", c_int32),
        ("attribute", c_int32),
        ("iGroup", c_int32),
        ("iUnit", c_int32),
        ("attribute2", c_int32),
        ("valuemin", c_double),
        ("valuemax", c_double),
        ("valuestep", c_double),
        ("valuedefault", c_double),
        ("nMaxChannel", c_int32),
        ("iReserved3", c_int32),
        ("nMaxView", c_int32),
        ("iProp_NumberOfElement", c_int32),
        ("iProp_ArrayBase", c_int32),
        ("iPropStep_Element", c_int32),
    )


class DcamValueText(ctypes.Structure):
    """DCAMPROP_VALUETEXT."""

    _fields_ = (
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("value", c_double),
        ("text", c_void_p),
        ("textbytes", c_int32),
    )


class DcamTimestamp(ctypes.Structure):
    """DCAM_TIMESTAMP."""

    _fields_ = (("sec", c_uint32), ("microsec", c_int32))


class DcamFrame(ctypes.Structure):
    """DCAMBUF_FRAME."""

    _fields_ = (
        ("size", c_int32),
        ("iKind", c_int32),
        ("option", c_int32),
        ("iFrame", c_int32),
        ("buf", c_void_p),
        ("rowbytes", c_int32),
        ("type", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("left", c_int32),
        ("top", c_int32),
        ("timestamp", DcamTimestamp),
        ("framestamp", c_int32),
        ("camerastamp", c_int32),
    )


class DcamWaitOpen(ctypes.Structure):
    """DCAMWAIT_OPEN."""

    _fields_ = (
        ("size", c_int32),
        ("supportevent", c_int32),
        ("hwait", c_void_p),
        ("hdcam", c_void_p),
    )


class DcamWait(ctypes.Structure):
    """DCAMWAIT_START; the time in milliseconds."""

    _fields_ = (
        ("size", c_int32),
        ("eventhappened", c_int32),
        ("eventmask", c_int32),
        ("timeout", c_int32),
    )


class DcamTransfer(ctypes.Structure):
    """DCAMCAP_TRANSFERINFO."""

    _fields_ = (
        ("size", c_int32),
        ("iKind", c_int32),
        ("nNewestFrameIndex", c_int32),
        ("nFrameCount", c_int32),
    )


PROTOTYPES: Prototypes = {
    "dcamapi_init": (c_int32, (POINTER(DcamInit),)),
    "dcamapi_uninit": (c_int32, ()),
    "dcamdev_open": (c_int32, (POINTER(DcamOpen),)),
    "dcamdev_close": (c_int32, (c_void_p,)),
    "dcamdev_getstring": (c_int32, (c_void_p, POINTER(DcamString))),
    "dcamprop_getattr": (c_int32, (c_void_p, POINTER(DcamAttribute))),
    "dcamprop_getvalue": (c_int32, (c_void_p, c_int32, POINTER(c_double))),
    "dcamprop_setvalue": (c_int32, (c_void_p, c_int32, c_double)),
    "dcamprop_getnextid": (c_int32, (c_void_p, POINTER(c_int32), c_int32)),
    "dcamprop_getname": (c_int32, (c_void_p, c_int32, c_void_p, c_int32)),
    "dcamprop_getvaluetext": (c_int32, (c_void_p, POINTER(DcamValueText))),
    "dcambuf_alloc": (c_int32, (c_void_p, c_int32)),
    "dcambuf_release": (c_int32, (c_void_p, c_int32)),
    "dcambuf_lockframe": (c_int32, (c_void_p, POINTER(DcamFrame))),
    "dcamcap_start": (c_int32, (c_void_p, c_int32)),
    "dcamcap_stop": (c_int32, (c_void_p,)),
    "dcamcap_transferinfo": (c_int32, (c_void_p, POINTER(DcamTransfer))),
    "dcamwait_open": (c_int32, (POINTER(DcamWaitOpen),)),
    "dcamwait_close": (c_int32, (c_void_p,)),
    "dcamwait_start": (c_int32, (c_void_p, POINTER(DcamWait))),
}
