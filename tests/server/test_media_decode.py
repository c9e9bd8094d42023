"""Hostile and odd files, decoded in this process for speed; test_media_pool.py has the workers."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from flamingo_model.media import Transform
from flamingo_server.errors import BadRequest, FlamingoError, TooLarge, UnsupportedMedia
from flamingo_server.media import DecodedMedia, MediaLimits
from flamingo_server.media.decode import decode_picture
from flamingo_server.media.headers import count_gif_frames, webp_size

TRANSFORM = Transform("pad", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LIMITS = MediaLimits(max_pixels=1_000_000, max_frames=8)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def encode(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def animation(file_format: str, num_frames: int) -> bytes:
    frames = [Image.new("RGB", (4, 4), (20 * at, 0, 0)) for at in range(num_frames)]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


def decode(data: bytes) -> DecodedMedia:
    return decode_picture(data, TRANSFORM, LIMITS)


def refusal(data: bytes) -> FlamingoError:
    with pytest.raises(FlamingoError) as caught:
        decode_picture(data, TRANSFORM, LIMITS, "prompt[2].image")
    assert caught.value.param == "prompt[2].image" and "0x" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_allowed_formats_are_decoded(file_format: str) -> None:
    media = decode(encode(Image.new("RGB", (40, 20), "white"), file_format))
    assert (media.width, media.height, media.format) == (40, 20, file_format)
    assert media.pixels.shape == (16, 16, 3) and (media.pixels[5:11] > 250).all()


@pytest.mark.parametrize("file_format", ["TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PDF", "AVIF"])
def test_other_formats_are_refused_by_name_of_the_allowed(file_format: str) -> None:
    error = refusal(encode(NOISE.resize((32, 32)), file_format))
    assert isinstance(error, UnsupportedMedia) and error.code == "not_a_picture"
    assert "PNG, JPEG, WEBP, GIF, BMP" in error.message


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"B", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM is text", b"%PDF-1.7"]
    + [b"RIFF\x24\x00\x00\x00WAVEfmt ", b"\x00" * 4096],
)
def test_what_is_no_picture_is_unsupported(data: bytes) -> None:
    assert isinstance(refusal(data), UnsupportedMedia)


def test_the_same_pixels_have_one_digest_whatever_the_file() -> None:
    png, webp, bmp = encode(NOISE), encode(NOISE, "WEBP", lossless=True), encode(NOISE, "BMP")
    assert len({decode(data).digest for data in (png, webp, bmp)}) == 1
    assert (decode(png).pixels == np.asarray(NOISE)).all()


def test_a_small_file_claiming_a_huge_picture_is_refused_from_its_header() -> None:
    data = png_claiming(60_000, 60_000)
    assert len(data) < 1024
    assert isinstance(refusal(data), TooLarge)


def test_the_message_tells_the_size_and_the_limit() -> None:
    error = refusal(png_claiming(2000, 1000))
    assert isinstance(error, TooLarge) and error.code == "image_too_large"
    assert "2,000 x 1,000 = 2,000,000 pixels; the limit is 1,000,000" in error.message


def test_a_gif_with_a_huge_canvas_is_refused() -> None:
    data = encode(NOISE, "GIF")
    huge = data[:6] + struct.pack("<HH", 65_000, 65_000) + data[10:]
    assert isinstance(refusal(huge), TooLarge)


def test_a_webp_with_a_huge_canvas_is_refused_before_pillow_creates_it() -> None:
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\xff\xff" * 2
    data = b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk
    assert "16,777,216 x 16,777,216" in refusal(data).message


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0"}])
def test_webp_headers_are_read_in_all_three_layouts(options: dict[str, object]) -> None:
    assert webp_size(encode(Image.new("RGB", (300, 7)), "WEBP", **options)) == (300, 7)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(file_format: str) -> None:
    media = decode(animation(file_format, 8))
    assert (media.pixels == 0).all() and media.format == file_format


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_over_the_frame_limit_is_refused(file_format: str) -> None:
    error = refusal(animation(file_format, 9))
    assert isinstance(error, TooLarge) and error.code == "too_many_frames"
    assert "9 frames or more; the limit is 8" in error.message


def test_counting_the_frames_of_a_bomb_stops_at_the_limit() -> None:
    frame = b"\x2c" + bytes(8) + b"\x00" + b"\x02\x01\x00\x00"
    bomb = b"GIF89a" + bytes(7) + frame * 100_000
    assert count_gif_frames(bomb, stop_after=512) == 513


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_cut_off_is_an_error_that_says_so(file_format: str) -> None:
    data = encode(NOISE.resize((200, 200)), file_format)
    error = refusal(data[: len(data) // 2])
    assert isinstance(error, BadRequest) and error.code == "truncated_image"
    assert "whole file" in error.message


def test_a_png_with_a_wrong_checksum_is_an_error() -> None:
    data = bytearray(encode(NOISE))
    data[data.index(b"IDAT") + 20] ^= 1
    assert isinstance(refusal(bytes(data)), BadRequest)


def test_exif_orientation_turns_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (16, 32), "black")
    stored.paste("white", (0, 0, 16, 16))
    media = decode(encode(stored, "JPEG", exif=exif))
    assert (media.width, media.height) == (32, 16)
    assert media.pixels[8, 0].tolist() == [0, 0, 0] and media.pixels[8, 15].tolist() == [255] * 3


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_garbage_in_metadata_does_not_matter(file_format: str) -> None:
    garbage = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\x81" * 50
    data = encode(NOISE, file_format, exif=garbage, icc_profile=b"\x00\xff" * 200, lossless=True)
    assert decode(data).pixels.shape == (16, 16, 3)


def test_a_cmyk_jpeg_with_a_profile_is_decoded() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    pixel = decode(encode(red, "JPEG", icc_profile=profile)).pixels[8, 8]
    assert pixel[0] > 245 and pixel[1:].max() < 10


def test_a_16_bit_png_is_scaled_not_clipped() -> None:
    data = encode(Image.new("I;16", (16, 16), 0x4000))
    assert (decode(data).pixels == 0x40).all()


def test_a_transparent_palette_png_lies_on_white() -> None:
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([255, 0, 0])
    assert (decode(encode(picture, transparency=0)).pixels == 255).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_damaged_file_is_a_picture_or_a_clients_error(file_format: str) -> None:
    data = encode(NOISE, file_format)
    rng = np.random.default_rng(1)
    for _ in range(60):
        mutant = bytearray(data)
        for at in rng.integers(0, len(mutant), 3):
            mutant[at] = rng.integers(0, 256)
        try:
            assert decode(bytes(mutant)).pixels.shape == (16, 16, 3)
        except FlamingoError as error:
            assert error.status in (400, 413, 415)
