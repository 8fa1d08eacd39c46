//! Who sees what, in the words of a support person: from object storage or from the store that serves.

use super::{Ad, Release, Shelf};
use crate::error::{Error, Result};
use crate::targeting::arms::Arm;
use serde::Serialize;
use std::fmt::{Display, Formatter, Result as Written};

pub enum Question {
    /// The answer does not repeat the pseudonym. `arm`: the user's, which no table holds.
    User {
        pseudonym: String,
        arm: Arm,
    },
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
    /// The user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<Arm>,
    /// Rows of ads: of the user's first segment in the user's arm, of the segment, or of the ad.
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
        Question::User { pseudonym, .. } => {
            let found = release.users.iter().find(|known| known.user_id == *pseudonym);
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
        Question::User { pseudonym, .. } => shelf.segments_of(job, &run, pseudonym).await?,
        _ => Vec::new(),
    };
    let ads = shelf.ads(job, &run).await?;
    Ok(answer(from, run, question, segments, ads))
}

fn answer(from: String, run: String, question: &Question, segments: Vec<String>, ads: Vec<Ad>) -> Answer {
    let wanted = |ad: &Ad| match question {
        Question::User { arm, .. } => segments.first() == Some(&ad.segment_id) && ad.arm == arm.as_str(),
        Question::Segment(id) => ad.segment_id == *id,
        Question::Ad(id) => ad.ad_id == *id,
    };
    let (about, arm) = match question {
        Question::User { arm, .. } => (About::User, Some(*arm)),
        Question::Segment(_) => (About::Segment, None),
        Question::Ad(_) => (About::Ad, None),
    };
    let mut ads: Vec<Ad> = ads.into_iter().filter(wanted).collect();
    // Each arm is a table of its own, whose shares sum to one.
    ads.sort_by(|a, b| (&a.arm, &a.segment_id, a.rank).cmp(&(&b.arm, &b.segment_id, b.rank)));
    Answer { from, run, segments, arm, ads, about }
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
                let arm = self.arm.map_or_else(String::new, |arm| format!(" in the {arm} arm"));
                write!(f, ". Of 100 opportunities they see{arm}:")?;
            }
            About::Segment if self.ads.is_empty() => {
                write!(f, "No such segment serves. It may be below the floor, and then its users are served by others")?
            }
            About::Segment => write!(f, "Of 100 opportunities this segment's users see, by the arm they are in:")?,
            About::Ad if self.ads.is_empty() => {
                write!(f, "This ad is shown to no segment: it is out of its dates or its budget, or others were worth more")?;
            }
            About::Ad => write!(f, "Of 100 opportunities this ad takes, by the arm that users are in:")?,
        }
        for of_arm in self.ads.chunk_by(|a, b| a.arm == b.arm) {
            if self.about != About::User {
                write!(f, "\n  {}", of_arm[0].arm)?;
            }
            for ad in of_arm {
                let what = if self.about == About::Ad { &ad.segment_id } else { &ad.ad_id };
                write!(f, "\n  {:>6.2}  {what}", 100.0 * ad.propensity)?;
                if let Some(cap) = ad.frequency_cap {
                    write!(f, ", at most {cap} times a day")?;
                }
            }
        }
        write!(f, "\nrun {} in {}", self.run, self.from)
    }
}
