//! Times as HTTP and S3 write them. A time is milliseconds since 1970, UTC; which one it is now is
//! always an argument.

/// Milliseconds of a day.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The last time that is written with four digits of a year: the end of 9999.
const LAST_MS: u64 = 253_402_300_799_999;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A time, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// Days from 1970 to this day, by Howard Hinnant's rule.
fn days_from(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let of_era = year % 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn parts(ms: u64) -> Parts {
    let seconds = ms.min(LAST_MS) / 1000;
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    Parts {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month,
        day: of_year - (153 * shifted + 2) / 5 + 1,
        hour: seconds / 3600 % 24,
        minute: seconds / 60 % 60,
        second: seconds % 60,
    }
}

impl Parts {
    fn millis(self) -> Option<u64> {
        let leap = self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let days = match self.month {
            2 => 28 + u64::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let fits = (1970..=9999).contains(&self.year)
            && (1..=days).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second <= 60;
        let days = fits.then(|| days_from(self.year, self.month, self.day))?;
        let seconds = days * 86_400 + self.hour * 3600 + self.minute * 60 + self.second;
        Some(seconds * 1000)
    }
}

/// The same day and time so many years later: the day after it, if that year has no such day. Not behind the last
/// time that can be written.
pub fn years_after(ms: u64, years: u64) -> u64 {
    let p = parts(ms);
    let year = p.year.saturating_add(years);
    let later = Parts { year, ..p }.millis().or_else(|| {
        let next = Parts {
            year,
            month: 3,
            day: 1,
            ..p
        };
        next.millis()
    });
    later.map_or(LAST_MS, |later| later + ms.min(LAST_MS) % 1000)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
pub fn http_date(ms: u64) -> String {
    let p = parts(ms);
    let day = DAYS[(ms.min(LAST_MS) / DAY_MS % 7) as usize];
    let month = MONTHS[(p.month - 1) as usize];
    format!(
        "{day}, {:02} {month} {:04} {:02}:{:02}:{:02} GMT",
        p.day, p.year, p.hour, p.minute, p.second
    )
}

/// `1994-11-06T08:49:37.000Z`
pub fn iso_date(ms: u64) -> String {
    let p = parts(ms);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        p.year,
        p.month,
        p.day,
        p.hour,
        p.minute,
        p.second,
        ms.min(LAST_MS) % 1000
    )
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn clock(text: &str) -> Option<(u64, u64, u64)> {
    let mut fields = text.split(':').map(number);
    let time = (fields.next()??, fields.next()??, fields.next()??);
    fields.next().is_none().then_some(time)
}

fn month(name: &str) -> Option<u64> {
    let at = MONTHS.iter().position(|m| *m == name)?;
    Some(at as u64 + 1)
}

/// The time that an HTTP date means, in any of its three forms.
pub fn parse_http_date(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month_name, year, time) = match words[..] {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [_, day, month, year, time, "GMT" | "UTC" | "+0000" | "-0000"] => {
            (day, month, number(year)?, time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [_, date, time, "GMT"] => {
            let mut fields = date.split('-');
            let (day, month) = (fields.next()?, fields.next()?);
            let year = number(fields.next()?)?;
            let century = match year {
                0..70 => 2000,
                70..100 => 1900,
                _ => 0,
            };
            (day, month, year + century, time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => (day, month, number(year)?, time),
        _ => return None,
    };
    let (hour, minute, second) = clock(time)?;
    let (month, day) = (month(month_name)?, number(day)?);
    let p = Parts {
        year,
        month,
        day,
        hour,
        minute,
        second,
    };
    p.millis()
}

/// The time that `2024-05-06T07:08:09Z` means, with or without fractions, an offset, or the time of
/// the day at all.
pub fn parse_iso_date(text: &str) -> Option<u64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let mut fields = date.split('-').map(number);
    let (year, month, day) = (fields.next()??, fields.next()??, fields.next()??);
    if fields.next().is_some() {
        return None;
    }
    let (time, offset) = match time.strip_suffix('Z') {
        Some(time) => (time, 0i64),
        None => {
            let at = time.rfind(['+', '-'])?;
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let sign = if time[at..].starts_with('+') { 1 } else { -1 };
            let ms = i64::try_from((hours * 60 + minutes) * 60_000).ok()?;
            (&time[..at], sign * ms)
        }
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    number(fraction)?;
    let millis = number(&format!("{fraction:0<3}")[..3])?;
    let (hour, minute, second) = match whole.split(':').count() {
        2 => clock(&format!("{whole}:00"))?,
        _ => clock(whole)?,
    };
    let p = Parts {
        year,
        month,
        day,
        hour,
        minute,
        second,
    };
    (p.millis()? + millis).checked_add_signed(-offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times() {
        let ms = 784_111_777_000;
        assert_eq!(http_date(ms), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(iso_date(ms + 7), "1994-11-06T08:49:37.007Z");
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_http_date(text), Some(ms), "{text}");
        }
        for text in [
            "1994-11-06T08:49:37Z",
            "1994-11-06T08:49:37.000Z",
            "1994-11-06T09:49:37+01:00",
            "1994-11-06T03:19:37.0-05:30",
        ] {
            assert_eq!(parse_iso_date(text), Some(ms), "{text}");
        }
        assert_eq!(parse_iso_date("1970-01-02"), Some(DAY_MS));
        assert_eq!(iso_date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(http_date(951_782_400_000), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(iso_date(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn what_is_no_time() {
        for text in [
            "",
            "x",
            "1994",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "1994-02-30T00:00:00Z",
        ] {
            assert_eq!(
                (parse_http_date(text), parse_iso_date(text)),
                (None, None),
                "{text}"
            );
        }
        for text in [
            "1969-12-31T00:00:00Z",
            "1970-01-01T00:00:00+01:00",
            "2023-02-29",
            "2024-1-1T25:00:00Z",
        ] {
            assert_eq!(parse_iso_date(text), None, "{text}");
        }
    }

    #[test]
    fn years_later() {
        let after = |text: &str, years| iso_date(years_after(parse_iso_date(text).unwrap(), years));
        assert_eq!(
            after("2023-05-06T07:08:09.123Z", 1),
            "2024-05-06T07:08:09.123Z"
        );
        assert_eq!(after("2024-02-29T00:00:00Z", 4), "2028-02-29T00:00:00.000Z");
        assert_eq!(after("2024-02-29T00:00:00Z", 1), "2025-03-01T00:00:00.000Z");
        assert_eq!(
            after("2024-02-28T00:00:00Z", 100),
            "2124-02-28T00:00:00.000Z"
        );
        assert_eq!(years_after(5, 9000), LAST_MS);
        assert_eq!(years_after(u64::MAX, u64::MAX), LAST_MS);
    }

    proptest! {
        #[test]
        fn there_and_back(ms in 0..=LAST_MS) {
            prop_assert_eq!(parse_iso_date(&iso_date(ms)), Some(ms));
            prop_assert_eq!(parse_http_date(&http_date(ms)), Some(ms / 1000 * 1000));
        }

        #[test]
        fn anything_is_taken(text: String) {
            let _ = (parse_http_date(&text), parse_iso_date(&text));
        }
    }
}
