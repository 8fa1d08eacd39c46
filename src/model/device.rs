//! Where a model trains and scores: the CPU, or a GPU when the CUDA half of libtorch is there.
//!
//! The program links libtorch's CPU half only. Its CUDA half, a library of the same build, is loaded at run time where one is found,
//! so that one binary serves pods with and without a GPU. Looked for in `NIGHTMARKET_LIBTORCH_CUDA` (a folder), beside the CPU half in
//! use, and in `LIBTORCH/lib`.

use crate::error::{Error, Result};
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Cuda, Device, Kind, Tensor};

const LIBRARY: &str = "libtorch_cuda.so";

/// The device that a setting names (`auto`, `cpu`, `cuda:0`) and, for this thread, the number of threads that sums are split among.
/// `auto` takes the first GPU there is.
///
/// # Errors
/// `Usage` when the named GPU is not there.
pub(super) fn take(name: &str, threads: usize) -> Result<Device> {
    tch::set_num_threads(threads as i32);
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => 0,
        _ => index(name).ok_or_else(|| Error::usage(format_args!("device {name} is not auto, cpu or cuda:N")))?,
    };
    let seen = gpus();
    match index < seen {
        true => Ok(Device::Cuda(index)),
        false if name == "auto" => Ok(Device::Cpu),
        false => Err(Error::usage(format_args!("device {name} is not there: {seen} GPUs are seen, {}", half()))
            .action("see `nightmarket doctor`, or say device = \"auto\"")),
    }
}

/// As [`take`], but on the CPU where a GPU that trained the model is not there to score.
pub(super) fn take_or_cpu(name: &str, threads: usize) -> Device {
    take(name, threads).unwrap_or(Device::Cpu)
}

fn index(name: &str) -> Option<usize> {
    name.strip_prefix("cuda:")?.parse().ok()
}

/// The name of a device, as facts record it.
pub(super) fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// What `doctor` says of libtorch: what is loaded, which devices are seen, and whether each can multiply.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Probe {
    /// `cpu` first.
    pub devices: Vec<String>,
    pub cuda_half: String,
    /// A device whose product is not that of whole numbers.
    pub broken: Option<String>,
}

/// Looks at every device and multiplies two matrices on it whose product is known exactly.
pub fn probe() -> Probe {
    let devices: Vec<Device> = std::iter::once(Device::Cpu).chain((0..gpus()).map(Device::Cuda)).collect();
    let broken = devices.iter().find_map(|device| product(*device).err().map(|why| format!("{}: {why}", name(*device))));
    Probe { devices: devices.into_iter().map(name).collect(), cuda_half: half(), broken }
}

/// [256, 256] ones times twos: 512 everywhere.
fn product(device: Device) -> Result<(), String> {
    let ones = Tensor::f_ones([256, 256], (Kind::Float, device)).map_err(|error| error.to_string())?;
    let product = ones.f_matmul(&(&ones * 2.0)).map_err(|error| error.to_string())?;
    let wrong = product.ne(512.0).sum(Kind::Int64).int64_value(&[]);
    if wrong == 0 { Ok(()) } else { Err(format!("a product has {wrong} wrong values")) }
}

fn gpus() -> usize {
    if cuda_half().is_err() {
        return 0;
    }
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}

fn half() -> String {
    match cuda_half() {
        Ok(path) => format!("{} is loaded", path.display()),
        Err(why) => why.clone(),
    }
}

/// Loads the CUDA half, once. It must come before libtorch is first asked for a GPU: what it answered then it goes on answering.
fn cuda_half() -> &'static Result<PathBuf, String> {
    static HALF: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    HALF.get_or_init(|| {
        let folders = folders();
        match folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.exists()) {
            Some(path) => load(&path).map(|()| path.clone()).map_err(|why| format!("{} does not load: {why}", path.display())),
            None => {
                let looked = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
                Err(format!("no {LIBRARY} in {looked}"))
            }
        }
    })
}

fn folders() -> Vec<PathBuf> {
    let named = std::env::var_os("NIGHTMARKET_LIBTORCH_CUDA").map(PathBuf::from);
    let installed = std::env::var_os("LIBTORCH").map(|root: OsString| Path::new(&root).join("lib"));
    let mut folders: Vec<PathBuf> = named.into_iter().chain(beside_the_cpu_half()).chain(installed).collect();
    folders.dedup();
    folders
}

/// The folder of the libtorch_cpu.so that this process runs with (Linux).
fn beside_the_cpu_half() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    Path::new(&line[line.find('/')?..]).parent().map(Path::to_owned)
}

#[expect(unsafe_code, reason = "the system's loader is a library of C")]
unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

#[expect(unsafe_code, reason = "a library can be loaded at run time in no other way")]
fn load(path: &Path) -> Result<(), String> {
    const RTLD_NOW: c_int = 2;
    const RTLD_GLOBAL: c_int = 0x100;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: `name` ends with a zero byte and outlives the call. The library is of libtorch's own build or refuses to load; its
    // initialisers register kernels, take no locks of ours, and it is never unloaded.
    let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror gives null or a text that stands until the next call on this thread.
    let why = unsafe {
        let text = dlerror();
        if text.is_null() { "no reason given".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(why)
}
