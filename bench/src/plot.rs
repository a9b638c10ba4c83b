//! Plots of results, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Values of one contender, by case; `None` where it has none.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

const SIZE: (u32, u32) = (900, 360);
const FONT: &str = "sans-serif";
/// Colours that are told apart by most eyes (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];

/// Bars of all series for each case. `None` where there is nothing to show.
pub(crate) fn bars(
    title: &str,
    unit: &str,
    cases: &[String],
    series: &[Series],
) -> Result<Option<String>> {
    let values = series.iter().flat_map(|one| one.values.iter().flatten());
    let highest = values.fold(0.0, |highest: f64, value| highest.max(*value));
    if highest <= 0.0 || cases.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, (title, unit), cases, (series, highest))
        .map_err(|error| anyhow!("{title}: {error}"))?;
    // Labels of a document may be dark on light or light on dark: white below them suits both.
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    (title, unit): (&str, &str),
    cases: &[String],
    (series, highest): (&[Series], f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let count = cases.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..count, 0.0..highest * 1.15)?;
    let label = |at: &f64| cases.get(at.floor() as usize).cloned().unwrap_or_default();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE)
        .y_desc(unit)
        .label_style((FONT, 12))
        .draw()?;
    for index in 0..cases.len() {
        let at = index as f64 + 0.5;
        let style = (FONT, 11)
            .into_text_style(&root)
            .pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Center,
                plotters::style::text_anchor::VPos::Top,
            ));
        let (x, y) = chart.backend_coord(&(at, 0.0));
        root.draw(&Text::new(label(&at), (x, y + 6), style))?;
    }
    let width = 0.8 / series.len() as f64;
    for (index, (one, colour)) in series.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let bars = one.values.iter().enumerate().filter_map(|(case, value)| {
            let left = case as f64 + 0.1 + width * index as f64;
            let corners = [(left, 0.0), (left + width * 0.92, (*value)?)];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(one.name.as_str())
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 12))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_value_is_a_bar_and_every_name_is_there() {
        let cases = ["64 B".to_owned(), "1518 B".to_owned()];
        let series = [
            Series {
                name: "vswitch".into(),
                values: vec![Some(4.0), Some(3.0)],
            },
            Series {
                name: "OVS-DPDK".into(),
                values: vec![Some(2.0), None],
            },
        ];
        let svg = bars("Frames", "Mpps", &cases, &series).unwrap().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["Frames", "Mpps", "64 B", "1518 B", "vswitch", "OVS-DPDK"] {
            assert!(svg.contains(text), "{text}");
        }
        // Three bars and two squares of the legend, beside the background and the legend's own.
        assert_eq!(svg.matches("#0072B2").count(), 3, "{svg}");
        assert_eq!(svg.matches("#E69F00").count(), 2);
    }

    #[test]
    fn nothing_is_no_plot() {
        assert!(bars("t", "u", &["a".into()], &[]).unwrap().is_none());
    }
}
