//! Tables for terminals, at most 100 columns wide.

/// Columns of a terminal that a table may take.
const WIDTH: usize = 100;
/// A column is not made narrower than this.
const NARROWEST: usize = 8;

/// Lays out rows under their headings. Columns whose heading begins with `>` are aligned to the right. What does not fit
/// is cut, in the widest columns first.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = headings
        .iter()
        .map(|heading| heading.starts_with('>'))
        .collect();
    let headings: Vec<String> = headings
        .iter()
        .map(|heading| heading.trim_start_matches('>').to_owned())
        .collect();
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| heading.chars().count())
        .collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let gaps = 2 * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > WIDTH {
        match widths
            .iter_mut()
            .max()
            .filter(|widest| **widest > NARROWEST)
        {
            Some(widest) => *widest -= 1,
            None => break,
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .zip(&right)
            .map(|((cell, &width), &right)| {
                let cell = clip(cell, width);
                if right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn clip(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let mut clipped: String = cell.chars().take(width.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["lab".to_owned(), "7".to_owned()],
            vec!["x".to_owned(), "1234".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", ">N"], &rows),
            "NAME     N\nlab      7\nx     1234\n"
        );
    }

    #[test]
    fn never_wider_than_100() {
        let rows = [vec![
            "n".repeat(64),
            "p".repeat(107),
            "1500".to_owned(),
            "d".repeat(300),
        ]];
        let text = table(&["NETWORK", "PATH", ">MTU", "DETAIL"], &rows);
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(text.contains("  1500  ") && text.contains('…'));
    }
}
