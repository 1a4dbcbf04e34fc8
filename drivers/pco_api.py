"""pco.sdk as PCO's headers declare it, as far as it is used.

SC2_CamExport.h, SC2_SDKStructures.h, SC2_common.h, sc2_defs.h and PCO_err.h, as PCO's own package
pco 2.6.0 and pylablib 1.4.5 have them.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int16, c_int32, c_uint8, c_uint16, c_uint32, c_void_p

from tem_live.drivers.native import Prototypes

# PCO_err.h: the bits of the device in between are left out.
DEVICE_BITS = 0x0FFF0000
IS_ERROR, IS_WARNING = 0x80000000, 0x40000000
COMMON = 0xA0000000
LAYER, FIRMWARE = 0x0000F000, 0x00001000
CODES = {
    0xA0000001: "WRONGVALUE",
    0xA0000002: "INVALIDHANDLE",
    0xA0000003: "NOMEMORY",
    0xA0000005: "TIMEOUT",
    0xA0000006: "BUFFERSIZE",
    0xA0000007: "NOTINIT",
    0xA0000011: "LIBRARYVERSION",
    0xA0000012: "CAMERAVERSION",
    0xA0000013: "NOTAVAILABLE",
    0x80001001: "FIRMWARE_TELETIMEOUT",
    0x80001003: "FIRMWARE_NOACK",
    0x80002001: "DRIVER_NOTINIT",
    0x80002006: "DRIVER_NODRIVER: no camera is connected",
    0x80002007: "DRIVER_IOFAILURE",
    0x8000200B: "DRIVER_DEVICEBUSY: another program has it",
    0x80002010: "DRIVER_BUFFER_CANCELLED",
    0x80002014: "DRIVER_BUFFER_SYSTEMOFF",
    0x80002015: "DRIVER_DEVICEOFF",
    0x80002017: "DRIVER_BUSRESET",
    0x80002018: "DRIVER_BUFFER_LOSTIMAGE",
    0x80002030: "DRIVER_HEAD_LOST",
    0x80002031: "DRIVER_HEAD_POWER_DOWN",
    0x80002032: "DRIVER_CAMERA_BUSY",
    0x80003004: "SDKDLL_NOTAVAILABLE",
    0x80003008: "SDKDLL_BUFCNTEXHAUSTED",
    0x80003009: "SDKDLL_ALREADYOPENED: another program has it",
    0x8000300D: "SDKDLL_DLLNOTFOUND: no camera, or no driver of its interface",
    0x80003010: "SDKDLL_RECORDINGMUSTBEON",
}
REFUSALS = {0xA0000001, 0xA0000006, 0xA0000013, 0x80002032, 0x80003004}
GONE = {0x80001001, 0x80001003}
"""Errors of the firmware's layer that are none of its own."""
LOSTIMAGE = 0x80002018

# sc2_defs.h, SC2_SDKStructures.h
HAS_METADATA = 0x00004000
METADATA_ON, METADATA_OFF = 1, 0
TIMESTAMP_OFF = 0
TRIGGER_AUTO = 0
ACQUIRE_AUTO = 0
LSB = 1
READ_WHILE_RECORDING = 1
FILLED = 0x00008000
NEW_BUFFER = -1
TIME_BASES_S = (1e-9, 1e-6, 1e-3)
BUFFERS_AT_MOST = 16
TEXT_BYTES = 100


class PcoDescription(ctypes.Structure):
    """PCO_Description."""

    _pack_ = 1
    _fields_ = (
        ("wSize", c_uint16),
        ("wSensorTypeDESC", c_uint16),
        ("wSensorSubTypeDESC", c_uint16),
        ("wMaxHorzResStdDESC", c_uint16),
        ("wMaxVertResStdDESC", c_uint16),
        ("wMaxHorzResExtDESC", c_uint16),
        ("wMaxVertResExtDESC", c_uint16),
        ("wDynResDESC", c_uint16),
        ("wMaxBinHorzDESC", c_uint16),
        ("wBinHorzSteppingDESC", c_uint16),
        ("wMaxBinVertDESC", c_uint16),
        ("wBinVertSteppingDESC", c_uint16),
        ("wRoiHorStepsDESC", c_uint16),
        ("wRoiVertStepsDESC", c_uint16),
        ("wNumADCsDESC", c_uint16),
        ("wMinSizeHorzDESC", c_uint16),
        ("dwPixelRateDESC", c_uint32 * 4),
        ("ZZdwDummypr", c_uint32 * 20),
        ("wConvFactDESC", c_uint16 * 4),
        ("sCoolingSetpoints", c_int16 * 10),
        ("ZZwDummycv", c_uint16 * 8),
        ("wSoftRoiHorStepsDESC", c_uint16),
        ("wSoftRoiVertStepsDESC", c_uint16),
        ("wIRDESC", c_uint16),
        ("wMinSizeVertDESC", c_uint16),
        ("dwMinDelayDESC", c_uint32),
        ("dwMaxDelayDESC", c_uint32),
        ("dwMinDelayStepDESC", c_uint32),
        ("dwMinExposureDESC", c_uint32),
        ("dwMaxExposureDESC", c_uint32),
        ("dwMinExposureStepDESC", c_uint32),
        ("dwMinDelayIRDESC", c_uint32),
        ("dwMaxDelayIRDESC", c_uint32),
        ("dwMinExposureIRDESC", c_uint32),
        ("dwMaxExposureIRDESC", c_uint32),
        ("wTimeTableDESC", c_uint16),
        ("wDoubleImageDESC", c_uint16),
        ("sMinCoolSetDESC", c_int16),
        ("sMaxCoolSetDESC", c_int16),
        ("sDefaultCoolSetDESC", c_int16),
        ("wPowerDownModeDESC", c_uint16),
        ("wOffsetRegulationDESC", c_uint16),
        ("wColorPatternDESC", c_uint16),
        ("wPatternTypeDESC", c_uint16),
        ("wDummy1", c_uint16),
        ("wDummy2", c_uint16),
        ("wNumCoolingSetpoints", c_uint16),
        ("dwGeneralCapsDESC1", c_uint32),
        ("dwGeneralCapsDESC2", c_uint32),
        ("dwExtSyncFrequency", c_uint32 * 4),
        ("dwGeneralCapsDESC3", c_uint32),
        ("dwGeneralCapsDESC4", c_uint32),
        ("ZZdwDummy", c_uint32 * 40),
    )


class PcoMetadata(ctypes.Structure):
    """PCO_METADATA_STRUCT."""

    _pack_ = 1
    _fields_ = (
        ("wSize", c_uint16),
        ("wVersion", c_uint16),
        # First byte least significant, two decimal digits a byte, from 1.
        ("bIMAGE_COUNTER_BCD", c_uint8 * 4),
        ("bIMAGE_TIME_US_BCD", c_uint8 * 3),
        ("bIMAGE_TIME_SEC_BCD", c_uint8),
        ("bIMAGE_TIME_MIN_BCD", c_uint8),
        ("bIMAGE_TIME_HOUR_BCD", c_uint8),
        ("bIMAGE_TIME_DAY_BCD", c_uint8),
        ("bIMAGE_TIME_MON_BCD", c_uint8),
        ("bIMAGE_TIME_YEAR_BCD", c_uint8),
        ("bIMAGE_TIME_STATUS", c_uint8),
        ("wEXPOSURE_TIME_BASE", c_uint16),
        ("dwEXPOSURE_TIME", c_uint32),
        ("dwFRAMERATE_MILLIHZ", c_uint32),
        ("sSENSOR_TEMPERATURE", c_int16),
        ("wIMAGE_SIZE_X", c_uint16),
        ("wIMAGE_SIZE_Y", c_uint16),
        ("bBINNING_X", c_uint8),
        ("bBINNING_Y", c_uint8),
        ("dwSENSOR_READOUT_FREQUENCY", c_uint32),
        ("wSENSOR_CONV_FACTOR", c_uint16),
        ("dwCAMERA_SERIAL_NO", c_uint32),
        ("wCAMERA_TYPE", c_uint16),
        ("bBIT_RESOLUTION", c_uint8),
        ("bSYNC_STATUS", c_uint8),
        ("wDARK_OFFSET", c_uint16),
        ("bTRIGGER_MODE", c_uint8),
        ("bDOUBLE_IMAGE_MODE", c_uint8),
        ("bCAMERA_SYNC_MODE", c_uint8),
        ("bIMAGE_TYPE", c_uint8),
        ("wCOLOR_PATTERN", c_uint16),
        ("wCAMERA_SUBTYPE", c_uint16),
        ("dwEVENT_NUMBER", c_uint32),
        ("wIMAGE_SIZE_X_Offset", c_uint16),
        ("wIMAGE_SIZE_Y_Offset", c_uint16),
        ("bREADOUT_MODE", c_uint8),
    )


Code = c_uint32
PROTOTYPES: Prototypes = {
    "PCO_InitializeLib": (Code, ()),
    "PCO_OpenCamera": (Code, (POINTER(c_void_p), c_uint16)),
    "PCO_CloseCamera": (Code, (c_void_p,)),
    "PCO_GetCameraName": (Code, (c_void_p, c_void_p, c_uint16)),
    "PCO_GetCameraDescription": (Code, (c_void_p, POINTER(PcoDescription))),
    "PCO_GetCameraHealthStatus": (
        Code,
        (c_void_p, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32)),
    ),
    "PCO_SetRecordingState": (Code, (c_void_p, c_uint16)),
    "PCO_SetTriggerMode": (Code, (c_void_p, c_uint16)),
    "PCO_SetAcquireMode": (Code, (c_void_p, c_uint16)),
    "PCO_SetTimestampMode": (Code, (c_void_p, c_uint16)),
    "PCO_SetBitAlignment": (Code, (c_void_p, c_uint16)),
    "PCO_SetMetaDataMode": (Code, (c_void_p, c_uint16, POINTER(c_uint16), POINTER(c_uint16))),
    "PCO_GetMetaData": (Code, (c_void_p, c_int16, POINTER(PcoMetadata), c_uint32, c_uint32)),
    "PCO_SetBinning": (Code, (c_void_p, c_uint16, c_uint16)),
    "PCO_GetBinning": (Code, (c_void_p, POINTER(c_uint16), POINTER(c_uint16))),
    "PCO_SetROI": (Code, (c_void_p, c_uint16, c_uint16, c_uint16, c_uint16)),
    "PCO_GetROI": (Code, (c_void_p, *(POINTER(c_uint16),) * 4)),
    "PCO_SetDelayExposureTime": (Code, (c_void_p, c_uint32, c_uint32, c_uint16, c_uint16)),
    "PCO_GetDelayExposureTime": (
        Code,
        (c_void_p, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint16), POINTER(c_uint16)),
    ),
    "PCO_ArmCamera": (Code, (c_void_p,)),
    "PCO_GetSizes": (Code, (c_void_p, *(POINTER(c_uint16),) * 4)),
    "PCO_GetCOCRuntime": (Code, (c_void_p, POINTER(c_uint32), POINTER(c_uint32))),
    "PCO_SetImageParameters": (
        Code,
        (c_void_p, c_uint16, c_uint16, c_uint32, c_void_p, c_int32),
    ),
    "PCO_AllocateBuffer": (
        Code,
        (c_void_p, POINTER(c_int16), c_uint32, POINTER(c_void_p), POINTER(c_void_p)),
    ),
    "PCO_FreeBuffer": (Code, (c_void_p, c_int16)),
    "PCO_AddBufferEx": (
        Code,
        (c_void_p, c_uint32, c_uint32, c_int16, c_uint16, c_uint16, c_uint16),
    ),
    "PCO_GetBufferStatus": (Code, (c_void_p, c_int16, POINTER(c_uint32), POINTER(c_uint32))),
    "PCO_CancelImages": (Code, (c_void_p,)),
}
