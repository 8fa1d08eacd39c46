//! Who sees what, in the words of a support person: from object storage or from the store that serves.

use super::{Ad, Release, Shelf};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt::{Display, Formatter, Result as Written};

pub enum Question {
    /// The pseudonym; the answer does not repeat it.
    User(String),
    Segment(String),
    Ad(String),
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Answer {
    /// Where it was looked up.
    pub from: String,
    pub run: String,
    /// Of the user, the one served first.
    pub segments: Vec<String>,
    /// Rows of ads: of the user's first segment, of the segment, or of the ad.
    pub ads: Vec<Ad>,
    #[serde(skip)]
    about: About,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum About {
    User,
    Segment,
    Ad,
}

/// Asks a committed table.
pub fn ask_release(release: &Release, from: String, question: &Question) -> Answer {
    let segments = match question {
        Question::User(user) => {
            let found = release.users.iter().find(|known| known.user_id == *user);
            found.map_or_else(Vec::new, |user| user.segments.clone())
        }
        _ => Vec::new(),
    };
    answer(from, release.run.clone(), question, segments, release.ads.clone())
}

/// Asks the store that serves.
pub async fn ask_store(shelf: &mut dyn Shelf, job: &str, from: String, question: &Question) -> Result<Answer> {
    let run = shelf.current(job).await?;
    let run =
        run.ok_or_else(|| Error::usage(format_args!("nothing of {job} is loaded in {from}")).action("load it with `nightmarket publish`"))?;
    let segments = match question {
        Question::User(user) => shelf.segments_of(job, &run, user).await?,
        _ => Vec::new(),
    };
    let ads = shelf.ads(job, &run).await?;
    Ok(answer(from, run, question, segments, ads))
}

fn answer(from: String, run: String, question: &Question, segments: Vec<String>, ads: Vec<Ad>) -> Answer {
    let wanted = |ad: &Ad| match question {
        Question::User(_) => segments.first() == Some(&ad.segment_id),
        Question::Segment(id) => ad.segment_id == *id,
        Question::Ad(id) => ad.ad_id == *id,
    };
    let about = match question {
        Question::User(_) => About::User,
        Question::Segment(_) => About::Segment,
        Question::Ad(_) => About::Ad,
    };
    let ads = ads.into_iter().filter(wanted).collect();
    Answer { from, run, segments, ads, about }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> Written {
        match self.about {
            About::User if self.segments.is_empty() => {
                write!(
                    f,
                    "This user is in no segment: they were not seen, did not consent, or asked to be left out. No ad is targeted at them"
                )?;
            }
            About::User => {
                write!(f, "This user is served as {}", self.segments[0])?;
                if self.segments.len() > 1 {
                    write!(f, " and also belongs to {}", self.segments[1..].join(", "))?;
                }
                write!(f, ". Of 100 opportunities they see:")?;
            }
            About::Segment if self.ads.is_empty() => {
                write!(f, "No such segment serves. It may be below the floor, and then its users are served by others")?
            }
            About::Segment => write!(f, "Of 100 opportunities this segment's users see:")?,
            About::Ad if self.ads.is_empty() => {
                write!(f, "This ad is shown to no segment: it is out of its dates or its budget, or others were worth more")?;
            }
            About::Ad => write!(f, "This ad is shown to:")?,
        }
        for ad in &self.ads {
            let what = if self.about == About::Ad { &ad.segment_id } else { &ad.ad_id };
            write!(f, "\n  {:>6.2}  {what}  ({} arm)", 100.0 * ad.propensity, ad.arm)?;
            if let Some(cap) = ad.frequency_cap {
                write!(f, ", at most {cap} times a day")?;
            }
        }
        write!(f, "\nrun {} in {}", self.run, self.from)
    }
}
