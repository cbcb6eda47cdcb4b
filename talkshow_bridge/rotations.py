"""Axis-angle, matrix and quaternion conversions for stacks of rotations (numpy, radians, right-handed)."""

from __future__ import annotations

import numpy as np


def matrix(axis_angle: np.ndarray) -> np.ndarray:
    """(..., 3) axis-angle -> (..., 3, 3) rotation matrices (Rodrigues)."""
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    skew = np.zeros((*axis_angle.shape[:-1], 3, 3), axis_angle.dtype)
    x, y, z = np.moveaxis(axis_angle, -1, 0)
    skew[..., 0, 1], skew[..., 0, 2], skew[..., 1, 2] = -z, y, -x
    skew[..., 1, 0], skew[..., 2, 0], skew[..., 2, 1] = z, -y, x
    safe = np.maximum(angle, 1e-8)
    half = np.sin(safe / 2) / safe
    return np.eye(3, dtype=axis_angle.dtype) + np.sin(safe) / safe * skew + 2 * half * half * (skew @ skew)


def quaternion(axis_angle: np.ndarray) -> np.ndarray:
    """(..., 3) axis-angle -> (..., 4) unit quaternions, scalar first."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), axis_angle * 0.5 * np.sinc(angle / (2 * np.pi))], axis=-1)


def axis_angle_of_quaternion(q: np.ndarray) -> np.ndarray:
    """(..., 4) unit quaternions, scalar first -> (..., 3) axis-angle of at most pi."""
    q = np.where(q[..., :1] < 0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., :1])
    return q[..., 1:] * np.where(sine > 1e-8, angle / np.maximum(sine, 1e-8), 2.0)


def axis_angle(rotation: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotation matrices -> (..., 3) axis-angle of at most pi; stable near a half turn."""
    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    diagonal = np.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], -1)
    candidates = np.empty((*m.shape[:-2], 4, 4), m.dtype)  # four scaled versions of the same quaternion
    candidates[..., 0, 0] = 1 + trace
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        candidates[..., i + 1, i + 1] = 1 + 2 * diagonal[..., i] - trace
        candidates[..., 0, i + 1] = candidates[..., i + 1, 0] = m[..., k, j] - m[..., j, k]
        candidates[..., i + 1, j + 1] = candidates[..., j + 1, i + 1] = m[..., i, j] + m[..., j, i]
    best = np.argmax(np.concatenate([trace[..., None], 2 * diagonal - trace[..., None]], -1), -1)
    q = np.take_along_axis(candidates, best[..., None, None], -2)[..., 0, :]
    return axis_angle_of_quaternion(q / np.linalg.norm(q, axis=-1, keepdims=True))


def slerp(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Shortest-path blend of axis-angle stacks a and b (..., 3); weight broadcasts over (..., 1), 0 gives a."""
    qa, qb = quaternion(a), quaternion(b)
    dot = np.sum(qa * qb, axis=-1, keepdims=True)
    qb, dot = np.where(dot < 0, -qb, qb), np.clip(np.abs(dot), 0, 1)
    angle = np.arccos(dot)
    near = angle < 1e-4
    sine = np.where(near, 1.0, np.sin(angle))
    wa = np.where(near, 1 - weight, np.sin((1 - weight) * angle) / sine)
    wb = np.where(near, weight, np.sin(weight * angle) / sine)
    q = wa * qa + wb * qb
    return axis_angle_of_quaternion(q / np.linalg.norm(q, axis=-1, keepdims=True))
