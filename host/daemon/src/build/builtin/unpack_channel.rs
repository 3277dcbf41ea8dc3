//! `builtin:unpack-channel`: the one directory of an archive, under the channel's name. Start at [`run`].

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use super::{Input, failed};

pub(super) fn run(input: &Input) -> Result<(), String> {
    let out = PathBuf::from(input.attribute("out")?);
    let name = input.attribute("channelName")?;
    let source = input.attribute("src")?;
    if name.contains('/') || name == ".." || name == "." || name.is_empty() {
        return Err(format!("channelName is not allowed to contain filesystem separators, got '{name}'"));
    }
    fs::create_dir_all(&out).map_err(failed(format!("creating directory '{}'", out.display())))?;
    let file = File::open(&source).map_err(failed(format!("opening '{source}'")))?;
    let plain = decompressed(BufReader::new(file)).map_err(failed(format!("reading '{source}'")))?;
    let mut archive = tar::Archive::new(plain);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(false);
    archive.set_unpack_xattrs(false);
    archive.unpack(&out).map_err(failed(format!("unpacking '{source}'")))?;
    let entries = fs::read_dir(&out).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(failed(format!("reading directory '{}'", out.display())))?;
    let [entry] = entries.as_slice() else {
        return Err(format!("channel tarball '{source}' contains more than one file"));
    };
    fs::rename(entry.path(), out.join(name)).map_err(failed("renaming channel directory"))
}

/// What the first bytes say about the compression is believed, not the name.
fn decompressed(mut source: impl BufRead + 'static) -> std::io::Result<Box<dyn Read>> {
    let magic = source.fill_buf()?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        _ => Box::new(source),
    })
}
