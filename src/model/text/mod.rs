//! Texts -> vectors by a pretrained encoder of the BERT family (arXiv 1810.04805), which stays as it is: `config.json`,
//! `tokenizer.json` and `model.safetensors` in a folder, as Hugging Face's transformers and sentence-transformers write them.
//!
//! A text's vector is the mean of its tokens' last hidden states, scaled to length 1 (Sentence-BERT, arXiv 1908.10084).

mod wordpiece;

use super::device;
use super::network::Weight;
use crate::error::{Context, Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};
use wordpiece::WordPiece;

/// What of `config.json` is read.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    intermediate_size: i64,
    max_position_embeddings: i64,
    type_vocab_size: i64,
    layer_norm_eps: f64,
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".into()
}

/// A pretrained encoder and the vectors of the texts that it has met: each distinct text is encoded once.
pub struct TextEncoder {
    width: usize,
    network: Mutex<Network>,
    known: Mutex<Known>,
}

/// Text -> the number of its vector.
#[derive(Default)]
struct Known {
    places: HashMap<String, usize>,
    /// [texts, width]
    vectors: Vec<f32>,
}

/// Tensors of the arrays that `config` asks for.
struct Network {
    config: Config,
    words: WordPiece,
    arrays: BTreeMap<String, Tensor>,
    device: Device,
    threads: usize,
}

/// Texts encoded at a time, of nearly the same length.
const BATCH: usize = 64;

impl TextEncoder {
    /// Loads the encoder of a folder of this machine.
    ///
    /// # Errors
    /// `Usage` when a file is not there, `Contract` when it is of another kind of model.
    pub fn load(folder: &Path, device: &str, threads: usize) -> Result<Self> {
        let network = Network::load(folder, device, threads).with_context(|| format!("text encoder {}", folder.display()))?;
        Ok(Self { width: network.config.hidden_size as usize, network: Mutex::new(network), known: Mutex::default() })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vectors of texts, [texts, width] row-major.
    pub fn vectors(&self, texts: &[&str]) -> Vec<f32> {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut new: Vec<&str> = texts.iter().copied().filter(|text| !known.places.contains_key(*text)).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let network = self.network.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let vectors = network.encode(&new);
            known.vectors.extend(vectors);
            let first = known.places.len();
            known.places.extend(new.iter().zip(first..).map(|(text, place)| ((*text).to_owned(), place)));
        }
        texts.iter().flat_map(|text| &known.vectors[known.places[*text] * self.width..][..self.width]).copied().collect()
    }
}

impl Network {
    fn load(folder: &Path, device: &str, threads: usize) -> Result<Self> {
        let device = device::take(device, threads)?;
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                Error::usage(format_args!("{}: {error}", path.display()))
                    .action("name a folder with config.json, tokenizer.json and model.safetensors")
            })
        };
        let config: Config =
            serde_json::from_str(&text("config.json")?).map_err(|error| Error::contract(format_args!("config.json: {error}")))?;
        config.check()?;
        let words = WordPiece::parse(&text("tokenizer.json")?, config.max_position_embeddings as usize)?;
        if words.largest() >= config.vocab_size {
            return Err(Error::contract(format_args!("tokenizer.json has ids beyond config.json's vocab_size = {}", config.vocab_size)));
        }
        let weights = folder.join("model.safetensors");
        if !weights.exists() {
            return Err(
                Error::usage(format_args!("{} does not exist", weights.display())).action("fetch the model's weights as safetensors")
            );
        }
        let found = Tensor::read_safetensors(&weights).map_err(|error| Error::contract(format_args!("model.safetensors: {error}")))?;
        let mut found: HashMap<String, Tensor> =
            found.into_iter().map(|(name, tensor)| (name.strip_prefix("bert.").map_or(name.clone(), str::to_owned), tensor)).collect();
        let mut arrays = BTreeMap::new();
        for (name, shape) in config.arrays() {
            let tensor = found.remove(&name).ok_or_else(|| Error::contract(format_args!("model.safetensors lacks {name}")))?;
            if tensor.size() != shape {
                return Err(Error::contract(format_args!("model.safetensors: {name} is {:?}, not {shape:?}", tensor.size())));
            }
            arrays.insert(name, tensor.to_kind(Kind::Float).to_device(device));
        }
        Ok(Self { config, words, arrays, device, threads })
    }

    /// Vectors of texts in their order, whatever the order in which they are encoded.
    fn encode(&self, texts: &[&str]) -> Vec<f32> {
        if self.device == Device::Cpu {
            tch::set_num_threads(self.threads as i32);
        }
        let ids: Vec<Vec<i64>> = texts.iter().map(|text| self.words.ids(text)).collect();
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|text| ids[*text].len());
        let width = self.config.hidden_size as usize;
        let mut vectors = vec![0.0; texts.len() * width];
        for chosen in order.chunks(BATCH) {
            let batch = tch::no_grad(|| self.forward(&chosen.iter().map(|text| ids[*text].as_slice()).collect::<Vec<_>>()));
            let batch = Weight::of(&batch).data;
            for (text, vector) in chosen.iter().zip(batch.chunks_exact(width)) {
                vectors[text * width..][..width].copy_from_slice(vector);
            }
        }
        vectors
    }

    /// Rows of ids -> unit vectors [rows, hidden].
    fn forward(&self, rows: &[&[i64]]) -> Tensor {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        // The padding's id does not matter: nothing looks at it.
        let padded =
            |of: fn(Option<&i64>) -> i64| -> Vec<i64> { rows.iter().flat_map(|row| (0..longest).map(move |i| of(row.get(i)))).collect() };
        let matrix = |values: Vec<i64>| Tensor::from_slice(&values).view([rows.len() as i64, longest as i64]).to_device(self.device);
        let ids = matrix(padded(|id| id.copied().unwrap_or(0)));
        let mask = matrix(padded(|id| i64::from(id.is_some()))); // [rows, longest]
        let Config { hidden_size, num_attention_heads, num_hidden_layers, .. } = self.config;
        let of = |name: &str| &self.arrays[&format!("embeddings.{name}_embeddings.weight")];
        let x = of("word").index_select(0, &ids.flatten(0, 1)).view([rows.len() as i64, longest as i64, hidden_size]);
        let x = x + of("position").narrow(0, 0, longest as i64) + of("token_type").select(0, 0);
        let mut x = self.normal(&x, "embeddings.LayerNorm"); // [rows, longest, hidden]
        let hidden = mask.eq(0).view([rows.len() as i64, 1, 1, longest as i64]);
        for layer in 0..num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            // [rows, heads, longest, hidden / heads]
            let heads = |part: &str| {
                let all = self.dense(&x, &name(&format!("attention.self.{part}")));
                all.view([rows.len() as i64, longest as i64, num_attention_heads, hidden_size / num_attention_heads]).transpose(1, 2)
            };
            let (query, key, value) = (heads("query"), heads("key"), heads("value"));
            let scores = query.matmul(&key.transpose(2, 3)) / ((hidden_size / num_attention_heads) as f64).sqrt();
            let shares = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float);
            let seen = shares.matmul(&value).transpose(1, 2).reshape([rows.len() as i64, longest as i64, hidden_size]);
            let seen = self.dense(&seen, &name("attention.output.dense"));
            x = self.normal(&(x + seen), &name("attention.output.LayerNorm"));
            let inner = self.dense(&x, &name("intermediate.dense")).gelu("none");
            let inner = self.dense(&inner, &name("output.dense"));
            x = self.normal(&(x + inner), &name("output.LayerNorm"));
        }
        let mask = mask.to_kind(Kind::Float).unsqueeze(2);
        let mean = (x * &mask).sum_dim_intlist(1, false, Kind::Float) / mask.sum_dim_intlist(1, false, Kind::Float);
        let length = mean.square().sum_dim_intlist(1, true, Kind::Float).sqrt().clamp_min(1e-12);
        mean / length
    }

    fn dense(&self, x: &Tensor, name: &str) -> Tensor {
        x.linear(&self.arrays[&format!("{name}.weight")], Some(&self.arrays[&format!("{name}.bias")]))
    }

    fn normal(&self, x: &Tensor, name: &str) -> Tensor {
        let of = |part: &str| Some(&self.arrays[&format!("{name}.{part}")]);
        x.layer_norm([self.config.hidden_size], of("weight"), of("bias"), self.config.layer_norm_eps, false)
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let wanted = [
            ("model_type", &self.model_type, "bert"),
            ("hidden_act", &self.hidden_act, "gelu"),
            ("position_embedding_type", &self.position_embedding_type, "absolute"),
        ];
        for (name, found, wanted) in wanted {
            if found != wanted {
                return Err(Error::contract(format_args!("config.json: {name} = {found:?} is not {wanted:?}, which alone is known")));
            }
        }
        if self.num_attention_heads < 1 || self.hidden_size < 1 || self.hidden_size % self.num_attention_heads != 0 {
            let Self { hidden_size, num_attention_heads, .. } = self;
            return Err(Error::contract(format_args!("config.json: {num_attention_heads} heads do not part {hidden_size} units")));
        }
        Ok(())
    }

    /// Names and shapes of the arrays.
    fn arrays(&self) -> Vec<(String, Vec<i64>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let embeddings = |name: &str, rows: i64| (format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]);
        let mut arrays = vec![
            embeddings("word", self.vocab_size),
            embeddings("position", self.max_position_embeddings),
            // Texts come alone: only the first type is used.
            embeddings("token_type", self.type_vocab_size),
        ];
        let mut normal = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let attention = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"];
            let dense = attention.map(|part| (part, hidden, hidden));
            for (part, outputs, inputs) in dense.into_iter().chain([("intermediate.dense", inner, hidden), ("output.dense", hidden, inner)])
            {
                arrays.push((format!("{}.weight", name(part)), vec![outputs, inputs]));
                arrays.push((format!("{}.bias", name(part)), vec![outputs]));
            }
            normal.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(name));
        }
        arrays.extend(normal.iter().flat_map(|name| ["weight", "bias"].map(|part| (format!("{name}.{part}"), vec![hidden]))));
        arrays
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// What transformers and tokenizers say, see `testdata/text_encoder/reference.py`.
    #[derive(Deserialize)]
    struct Reference {
        sentences: Vec<Sentence>,
        awkward: Vec<Tokens>,
    }

    #[derive(Deserialize)]
    struct Sentence {
        text: String,
        ids: Vec<i64>,
        sum: f32,
        first: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct Tokens {
        text: String,
        ids: Vec<i64>,
    }

    fn here(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
    }

    /// Ten sentences, encoded in one batch of many lengths, have the reference's ids and, to 1e-4, its vectors.
    fn agrees(folder: &Path, reference: &str) {
        let reference = std::fs::read_to_string(here("testdata/text_encoder").join(reference)).expect("the reference");
        let Reference { sentences, awkward } = serde_json::from_str(&reference).expect("a reference");
        let encoder = TextEncoder::load(folder, "cpu", 1).unwrap_or_else(|error| panic!("{error}"));
        let ids = |text: &str| encoder.network.lock().expect("no panic before").words.ids(text);
        for Sentence { text, ids: expected, .. } in &sentences {
            assert_eq!(ids(text), *expected, "{text}");
        }
        for Tokens { text, ids: expected } in &awkward {
            assert_eq!(ids(text), *expected, "{text:?}");
        }
        let texts: Vec<&str> = sentences.iter().map(|sentence| sentence.text.as_str()).collect();
        let vectors = encoder.vectors(&texts);
        assert!(sentences.len() == 10 && vectors.len() == 10 * encoder.width());
        for (Sentence { text, sum, first, .. }, vector) in sentences.iter().zip(vectors.chunks_exact(encoder.width())) {
            for (x, expected) in vector.iter().zip(first) {
                assert!((x - expected).abs() < 1e-4, "{text}: {:?}, not {first:?}", &vector[..16]);
            }
            assert!((vector.iter().sum::<f32>() - sum).abs() < 1e-3, "{text}: the sum is not {sum}");
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "{text}: a unit vector");
        }
        assert_eq!(encoder.vectors(&texts[3..5]), vectors[3 * encoder.width()..5 * encoder.width()], "each text is encoded once");
    }

    #[test]
    fn a_small_bert_gives_the_vectors_of_the_reference() {
        agrees(&here("testdata/text_encoder/tiny"), "tiny.json");
    }

    #[test]
    fn minilm_gives_the_vectors_of_the_reference() {
        let folder = here(".models/minilm");
        match folder.join("model.safetensors").exists() {
            true => agrees(&folder, "minilm.json"),
            false => eprintln!("skipped: {} is not there; `make models` fetches it", folder.display()),
        }
    }

    #[test]
    fn a_folder_that_is_no_encoder_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let load = || TextEncoder::load(folder.path(), "cpu", 1).err().expect("refused").to_string();
        assert!(load().contains("config.json"), "{}", load());
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(here("testdata/text_encoder/tiny").join(name), folder.path().join(name)).expect("copied");
        }
        assert!(load().contains("model.safetensors"), "{}", load());
        let config = std::fs::read_to_string(folder.path().join("config.json")).expect("read");
        std::fs::write(folder.path().join("config.json"), config.replace("\"bert\"", "\"roberta\"")).expect("written");
        assert!(load().contains("roberta"), "{}", load());
    }
}
